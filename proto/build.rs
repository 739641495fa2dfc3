//! Compiles the contracts without an installed protoc.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;
use prost_types::{DescriptorProto, ServiceDescriptorProto, field_descriptor_proto::Type};

const FILES: [&str; 5] = [
    "locket.proto",
    "portcullis/lock/v1/lock.proto",
    "portcullis/policy/v1/groups.proto",
    "portcullis/policy/v1/policy.proto",
    "portcullis/cell/v1/cell.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    let mut descriptors = protox::compile(FILES, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    let files = || descriptors.file.iter();
    let methods: String = files().flat_map(|file| &file.service).map(method_names).collect();
    fs::write(out.join("methods.rs"), methods)?;
    let messages = descriptors.file.iter_mut().flat_map(|file| &mut file.message_type);
    messages.for_each(keep_groups_encoded);
    tonic_prost_build::configure()
        .bytes(".portcullis.policy.v1.StoredGroup.group")
        .bytes(".portcullis.policy.v1.ReplaceRequest.Groups.groups")
        .codec_path("crate::codec::Codec")
        // The JSON of the HTTP API has the names and the order of these fields.
        .type_attribute(".portcullis.policy.v1.Rule", "#[derive(serde::Serialize)]")
        .compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed=proto");
    Ok(())
}

/// Declares fields that contain a security group as `bytes` in generated code: the encoded group.
/// The wire format of `bytes` and of an embedded message is the same
/// (docs/adr/0029-encoded-groups.md).
fn keep_groups_encoded(message: &mut DescriptorProto) {
    for field in &mut message.field {
        if field.type_name() == ".portcullis.policy.v1.SecurityGroup" {
            field.type_name = None;
            field.set_type(Type::Bytes);
        }
    }
    message.nested_type.iter_mut().for_each(keep_groups_encoded);
}

/// An enum of the methods of a service.
fn method_names(service: &ServiceDescriptorProto) -> String {
    let name = service.name();
    let methods: Vec<&str> = service.method.iter().map(|method| method.name()).collect();
    let variants = methods.join(", ");
    let arms: String =
        methods.iter().map(|method| format!("{method:?} => Some(Self::{method}), ")).collect();
    format!(
        "#[derive(Debug, Clone, Copy, PartialEq, Eq)]
         pub enum {name} {{ {variants} }}
         impl {name} {{
             pub fn parse(name: &str) -> Option<Self> {{
                 match name {{ {arms} _ => None }}
             }}
         }}\n"
    )
}
