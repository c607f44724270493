//! When to ask for a certificate: renewals, and pauses after failures.
//!
//! In: how long a certificate holds, how often asking failed. Out: times to wait.
//!
//! Chance spreads them: workloads that started together, or lost the service together, do not come
//! back together.
//!
//! **Invariant:** only computes; nothing here waits.

use std::time::Duration;

use aws_lc_rs::rand;

/// Shortest time between two certificates.
const LEAST: Duration = Duration::from_secs(1);

/// Pauses between attempts that fail: each is twice the last, give or take a quarter.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

/// When to renew a certificate that holds for `left` from now on: at half of it, up to a tenth of
/// it earlier.
pub fn due(left: Duration) -> Duration {
    (left / 2).saturating_sub(share(left / 10)).max(LEAST)
}

/// A random part of a time.
pub(crate) fn share(time: Duration) -> Duration {
    let mut bytes = [0; 2];
    // Without chance all are at the same time, which is right, if not gentle.
    let _ = rand::fill(&mut bytes);
    time * u32::from(u16::from_le_bytes(bytes)) / (u32::from(u16::MAX) + 1)
}

// === impl Backoff ===

impl Backoff {
    /// Pauses that grow from the first to the longest.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// The pause after one more failure.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.longest);
        pause * 3 / 4 + share(pause / 2)
    }

    /// It worked: the next failure is a first one.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_at_about_half_of_its_time() {
        let hour = Duration::from_secs(3600);
        let times: Vec<_> = (0..100).map(|_| due(hour)).collect();
        assert!(times.iter().all(|t| *t <= hour / 2 && *t >= hour * 2 / 5), "{times:?}");
        assert!(times.iter().any(|t| *t != times[0]), "all at once");
        assert_eq!(due(Duration::ZERO), LEAST);
    }

    #[test]
    fn pauses_grow_to_the_longest_and_begin_again() {
        let (first, longest) = (Duration::from_millis(100), Duration::from_secs(5));
        let mut backoff = Backoff::new(first, longest);
        for expected in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            let (pause, expected) = (backoff.pause(), Duration::from_millis(expected));
            assert!(pause >= expected * 3 / 4 && pause <= expected * 5 / 4, "{pause:?}");
        }
        backoff.reset();
        assert!(backoff.pause() <= first * 5 / 4);
    }
}
