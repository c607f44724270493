//! The address that the proxy hands connections of IPv6 over from.
//!
//! IPv4 has a whole block of loopback addresses, IPv6 one: another has to be added.
//!
//! In: nothing. Out: `::6` on the interface `lo`, or not.
//!
//! **Invariant:** does nothing where there is no IPv6.

use std::path::Path;

use anyhow::{Context as _, Result};
use rtnetlink::Handle;
use tokio_stream::StreamExt as _;

use super::rules::HAND_OVER;

/// In every namespace the first interface is that one.
const LOOPBACK: u32 = 1;

/// Whether addresses of IPv6 can be used here.
pub(super) fn has_ipv6() -> bool {
    let disabled = std::fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6");
    Path::new("/proc/net/if_inet6").exists() && disabled.is_ok_and(|text| text.trim() == "0")
}

/// Add the address, unless it is there.
pub(super) fn set() -> Result<()> {
    with_netlink(async |handle| {
        let (_, address) = HAND_OVER;
        let add = handle.address().add(LOOPBACK, address.into(), 128).replace();
        add.execute()
            .await
            .with_context(|| format!("adding {address} to lo; it needs CAP_NET_ADMIN"))
    })
}

/// Take the address away, if it is there.
pub(super) fn clean() -> Result<()> {
    with_netlink(async |handle| {
        let (_, address) = HAND_OVER;
        let mut found = handle
            .address()
            .get()
            .set_link_index_filter(LOOPBACK)
            .set_address_filter(address.into())
            .execute();
        let message = || format!("taking {address} from lo; it needs CAP_NET_ADMIN");
        while let Some(there) = found.next().await {
            let there = there.with_context(message)?;
            handle.address().del(there).execute().await.with_context(message)?;
        }
        Ok(())
    })
}

fn with_netlink(work: impl AsyncFnOnce(Handle) -> Result<()>) -> Result<()> {
    if !has_ipv6() {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("starting the runtime")?.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().context("opening netlink")?;
        // Ends with its handle.
        tokio::spawn(connection);
        work(handle).await
    })
}
