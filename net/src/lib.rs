//! Outgoing TCP connections: order of the addresses of a name, detection of dead peers, and pauses
//! between attempts.
//!
//! Main items: [`Addresses`] resolves a name, [`open`] connects to one of its addresses and runs a
//! handshake, [`Stream`] is a connection that fails soon after its peer has died, [`backoff`] has
//! the pauses.
//!
//! Invariants:
//! - A name is resolved for every connection.
//! - The addresses of a name are tried as RFC 8305 ("Happy Eyeballs") specifies: both families
//!   interleaved, the next address [`STAGGER`] after the previous one or as soon as that fails, and
//!   the first connection that is ready wins.
//! - An address that was slower than another one, or stopped responding, is tried last for a minute
//!   by every client of the process.
//! - An established connection whose peer disappears without a FIN fails within [`SILENCE`] +
//!   [`PROBE`], even when it is idle.
//!
//! Not in this crate: TLS and HTTP. gRPC and HTTP clients are in
//! [`runtime`](../runtime/index.html), SQL clients in [`storage`](../storage/index.html).
//!
//! `docs/adr/0023-connecting-to-names-with-several-addresses.md` has the reasons for this crate.
//!
//! # Example
//!
//! ```
//! # fn main() -> std::io::Result<()> {
//! # let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
//! # let port = listener.local_addr()?.port();
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! let addresses = net::Addresses::of("localhost", port).await?;
//! // The handshake of a protocol above TCP, such as TLS; here none.
//! let handshake = async |_address, stream: net::Stream| Ok::<_, std::io::Error>(stream);
//! let _stream = net::open(&addresses, handshake).await?;
//! # Ok(())
//! # })
//! # }
//! ```

pub mod backoff;
mod memory;
mod order;
mod race;
mod stream;
#[cfg(feature = "testing")]
pub mod testing;

pub use race::{Addresses, HANDSHAKE, STAGGER, open};
pub use stream::{PROBE, SILENCE, Stream, notice_dead_peer};
