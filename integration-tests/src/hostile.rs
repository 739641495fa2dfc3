//! A client with a valid certificate that sends incomplete gRPC messages.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

pub use attack::call::unfinished;

use attack::call;
use bytes::Bytes;
use certificates::Files;
use h2::client::{Builder, SendRequest};
use runtime::{
    client::{self, Options},
    tls::{self, ClientTls},
};
use tokio::{runtime::Runtime, task::JoinSet};

/// HTTP/2 window for the server's responses: larger than a test needs.
const WINDOW: u32 = 16 << 20;

/// Number of answers by `grpc-status`; the key is the error for a call without one.
pub type Answers = BTreeMap<String, usize>;

/// A connection of the client.
#[derive(Debug)]
pub struct Hostile {
    send: SendRequest<Bytes>,
    address: String,
    answers: Arc<Mutex<Answers>>,
    tasks: JoinSet<()>,
    /// Last field: dropped after the tasks.
    runtime: Runtime,
}

impl Hostile {
    /// Connects with this certificate.
    ///
    /// # Panics
    /// The server cannot be reached.
    pub fn connect(address: &str, files: &Files) -> Self {
        tls::install_provider();
        let runtime = Runtime::new().expect("a runtime can be made");
        let Files { ca, cert, key } = files.clone();
        let tls = ClientTls::load(&tls::Files { ca, cert, key }).expect("good certificates");
        let mut tasks = JoinSet::new();
        let send = runtime.block_on(async {
            let stream = client::open(address, &tls, Options::default()).await;
            let (send, connection) = Builder::new()
                .initial_window_size(WINDOW)
                .initial_connection_window_size(WINDOW)
                .initial_max_send_streams(8_192)
                .handshake(stream.expect("the server accepts"))
                .await
                .expect("the server speaks HTTP/2");
            tasks.spawn(async move {
                let _ends_with_the_server = connection.await;
            });
            send
        });
        Self { send, address: address.to_owned(), answers: Arc::default(), tasks, runtime }
    }

    /// Begins `calls` calls, each with these bytes and without `END_STREAM`.
    pub fn begin(&mut self, path: &str, calls: usize, bytes: &Bytes) {
        for _ in 0..calls {
            let (send, bytes) = (self.send.clone(), bytes.clone());
            let answers = Arc::clone(&self.answers);
            let request = call::request(&self.address, path);
            let call = async move {
                let status = call::status(send, request, bytes, false).await;
                let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
                *answers.entry(status.unwrap_or_else(|error| error.to_string())).or_default() += 1;
            };
            self.tasks.spawn_on(call, self.runtime.handle());
        }
    }

    /// The answers until now.
    pub fn answers(&self) -> Answers {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
