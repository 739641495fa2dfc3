//! Which certificate may call which gRPC method: asked of the running services for every
//! method that their reflection lists, and documented in docs/security.md. A new method
//! changes the table, so it cannot be forgotten.

use std::{fmt::Write as _, fs, time::Duration};

use certificates::Files;
use integration_tests::{
    grpcurl::{self, Target},
    services::ControlPlane,
};
use runtime::{
    client::{self, Options},
    tls::{self, ClientTls},
};
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::Channel,
};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/security.md");
/// The table follows this line of the page, and ends with an empty line.
const MARK: &str = "<!-- The table is generated: UPDATE_GOLDEN=1 cargo test -p integration-tests -- access -->\n\n";

/// A call that is not refused within this time waits for the peer.
const WAITS: Duration = Duration::from_secs(2);

/// Sends an empty message and discards the answer.
#[derive(Debug, Clone, Copy, Default)]
struct Empty;

impl Codec for Empty {
    type Encode = ();
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Empty {
    type Item = ();
    type Error = Status;

    fn encode(&mut self, (): (), _: &mut EncodeBuf<'_>) -> Result<(), Status> {
        Ok(())
    }
}

impl Decoder for Empty {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        use bytes::Buf as _;
        buffer.advance(buffer.remaining());
        Ok(Some(()))
    }
}

/// Whether the server lets this certificate call the method.
async fn may(channel: &Channel, method: &str) -> bool {
    let call = async {
        let mut client = Grpc::new(channel.clone());
        client.ready().await.expect("the server is there");
        let path = PathAndQuery::try_from(format!("/{method}")).expect("a path");
        let answer = client.server_streaming(Request::new(()), path, Empty).await;
        match answer {
            Ok(answer) => answer.into_inner().message().await.map(|_message| ()),
            Err(status) => Err(status),
        }
    };
    match tokio::time::timeout(WAITS, call).await {
        Ok(Err(status)) => {
            let code = status.code();
            assert_ne!(code, Code::Unimplemented, "{method}: {status}");
            assert_ne!(code, Code::Unavailable, "{method}: {status}");
            code != Code::PermissionDenied
        }
        Ok(Ok(())) | Err(_) => true,
    }
}

/// The methods of all services, as reflection lists them.
fn methods(address: &str, files: &Files) -> Vec<String> {
    let target = Target::Tls(address, files);
    let list = |of: &[&str]| {
        let answer = grpcurl::run(&target, None, &[&["list"], of].concat());
        assert!(answer.success, "{answer:?}");
        answer.stdout.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    list(&[]).iter().flat_map(|service| list(&[service])).collect()
}

fn channel(address: &str, files: &Files) -> Channel {
    let Files { ca, cert, key } = files.clone();
    let tls = ClientTls::load(&tls::Files { ca, cert, key }).expect("good certificates");
    client::channel(address, Some(tls), Options::default()).expect("a good address")
}

async fn table(servers: [(&str, &str); 2], roles: &[(&str, Files)]) -> String {
    let mut table = "| server | method |".to_owned();
    for (role, _) in roles {
        write!(table, " {role} |").expect("a string takes text");
    }
    table.push_str(&format!("\n|---|---|{}\n", "---|".repeat(roles.len())));
    for (server, address) in servers {
        let channels: Vec<Channel> =
            roles.iter().map(|(_, files)| channel(address, files)).collect();
        for method in methods(address, &roles[0].1) {
            let (service, name) = method.rsplit_once('.').expect("a service and a method");
            let short = format!("{service}/{name}");
            let mut row = format!("| {server} | `{short}` |");
            for channel in &channels {
                let may = may(channel, &short).await;
                row.push_str(if may { " yes |" } else { " |" });
            }
            table.push_str(&row);
            table.push('\n');
        }
    }
    table
}

#[test]
fn each_method_admits_the_documented_certificates() {
    let plane = ControlPlane::start();
    let site = &plane.site;
    let roles = [
        ("`cn=operator`", plane.operator.clone()),
        ("`cn=syncer`", site.certificate("syncer")),
        ("`ou=cell`", site.cell_certificate("cell-1")),
        ("any other", site.certificate("other")),
    ];
    let servers =
        [("lock-server", &*plane.lock_server.address), ("policy-store", &*plane.store_address)];
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
    let made = runtime.block_on(table(servers, &roles));
    let page = fs::read_to_string(PAGE).expect("docs/security.md can be read");
    let (before, after) = page.split_once(MARK).expect("the page has the mark");
    let (documented, rest) = after.split_once("\n\n").expect("text follows the table");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(PAGE, format!("{before}{MARK}{made}\n{rest}")).expect("the page can be written");
    } else {
        assert_eq!(format!("{documented}\n"), made, "docs/security.md");
    }
}
