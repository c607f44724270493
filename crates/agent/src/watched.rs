//! Waiting for a value that another task changes.
//!
//! **Invariant:** holds the value's lock only while it looks: what `wait_for` of tokio gives back
//! holds it on, and a writer on the same thread would wait for ever.

use tokio::sync::watch;

/// Wait until the value is so; for ever if it never will be.
pub(crate) async fn until<T>(value: &mut watch::Receiver<T>, is_so: impl FnMut(&T) -> bool) {
    if value.wait_for(is_so).await.is_err() {
        std::future::pending::<()>().await;
    }
}
