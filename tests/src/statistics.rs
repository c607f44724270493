//! Whether a share is what chance allows, and percentiles.
//!
//! **Invariant:** pure.

use std::time::Duration;

/// Whether `hits` of `trials` is within five standard deviations of a probability.
///
/// Beyond that, chance would have to be blamed once in 1.7 million runs.
pub fn is_plausible(hits: u64, trials: u64, probability: f64) -> bool {
    let (hits, trials) = (hits as f64, trials as f64);
    let deviation = (trials * probability * (1.0 - probability)).sqrt();
    (hits - trials * probability).abs() <= 5.0 * deviation
}

/// A percentile of some durations, which are sorted by it; zero of none.
pub fn percentile(sample: &mut [Duration], percent: usize) -> Duration {
    sample.sort_unstable();
    let index = (sample.len().saturating_sub(1) * percent).div_ceil(100);
    sample.get(index).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certain_outcome_allows_no_exception() {
        assert!(is_plausible(0, 1000, 0.0));
        assert!(is_plausible(1000, 1000, 1.0));
        assert!(!is_plausible(1, 1000, 0.0));
        assert!(!is_plausible(999, 1000, 1.0));
    }

    #[test]
    fn a_share_far_from_its_probability_is_not_plausible() {
        assert!(is_plausible(110, 1000, 0.1));
        assert!(!is_plausible(200, 1000, 0.1));
    }

    #[test]
    fn a_percentile_is_one_of_the_sample() {
        let mut sample: Vec<_> = (1..=5).rev().map(Duration::from_millis).collect();
        assert_eq!(percentile(&mut sample, 50), Duration::from_millis(3));
        assert_eq!(percentile(&mut sample, 100), Duration::from_millis(5));
        assert_eq!(percentile(&mut [], 50), Duration::ZERO);
    }
}
