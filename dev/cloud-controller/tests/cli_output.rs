//! Builds the tables of a cf CLI from the responses to its recorded calls, like the
//! CLI, and compares them with the recorded output.

use std::collections::BTreeMap;

use cloud_controller::json::Json;

/// Resources of all responses to one path of a command.
fn resources<'a>(replies: &'a [(String, Json)], path: &str) -> Vec<&'a Json> {
    let of_path = replies.iter().filter(|(called, _)| called == path);
    of_path
        .flat_map(|(_, reply)| reply.at(&["resources"]).and_then(Json::as_array).unwrap_or(&[]))
        .collect()
}

fn text<'a>(json: &'a Json, path: &[&str]) -> &'a str {
    json.at(path).and_then(Json::as_str).unwrap_or_else(|| panic!("no {path:?} in an answer"))
}

fn names(replies: &[(String, Json)], path: &str) -> Vec<Vec<String>> {
    resources(replies, path).into_iter().map(|one| vec![text(one, &["name"]).to_owned()]).collect()
}

/// Organization and space name by the space's GUID, from `/v3/spaces?include=organization`.
fn places(replies: &[(String, Json)]) -> BTreeMap<&str, (String, String)> {
    let of_path = replies.iter().filter(|(called, _)| called == "/v3/spaces");
    let mut places = BTreeMap::new();
    for (_, reply) in of_path {
        let organizations = reply.at(&["included", "organizations"]).and_then(Json::as_array);
        let name = |guid: &str| {
            let found = organizations.unwrap_or(&[]).iter().find(|o| text(o, &["guid"]) == guid);
            text(found.expect("the organization is included"), &["name"]).to_owned()
        };
        for space in reply.at(&["resources"]).and_then(Json::as_array).unwrap() {
            let organization = text(space, &["relationships", "organization", "data", "guid"]);
            let place = (name(organization), text(space, &["name"]).to_owned());
            places.insert(text(space, &["guid"]), place);
        }
    }
    places
}

fn bound<'a>(group: &'a Json, lifecycle: &str) -> Vec<&'a str> {
    let spaces = group.at(&["relationships", &format!("{lifecycle}_spaces"), "data"]);
    let spaces = spaces.and_then(Json::as_array).unwrap();
    spaces.iter().map(|space| text(space, &["guid"])).collect()
}

/// Rows of `cf security-groups`: global first, staging before running, then the bound spaces.
fn security_groups(replies: &[(String, Json)]) -> Vec<Vec<String>> {
    let places = places(replies);
    let mut rows = Vec::new();
    for group in resources(replies, "/v3/security_groups") {
        let name = text(group, &["name"]);
        let before = rows.len();
        for lifecycle in ["staging", "running"] {
            if group.at(&["globally_enabled", lifecycle]).and_then(Json::as_bool) == Some(true) {
                rows.push([name, "<all>", "<all>", lifecycle].map(str::to_owned).to_vec());
            }
        }
        for lifecycle in ["running", "staging"] {
            for guid in bound(group, lifecycle) {
                let (organization, space) = &places[guid];
                rows.push([name, organization, space, lifecycle].map(str::to_owned).to_vec());
            }
        }
        if rows.len() == before {
            rows.push(vec![name.to_owned()]);
        }
    }
    rows
}

/// Rows of the table of spaces of `cf security-group NAME`.
fn spaces_of_group(replies: &[(String, Json)]) -> Vec<Vec<String>> {
    let places = places(replies);
    let groups = resources(replies, "/v3/security_groups");
    let guids = groups.iter().flat_map(|group| {
        ["running", "staging"].into_iter().flat_map(|lifecycle| bound(group, lifecycle))
    });
    guids.map(|guid| vec![places[guid].0.clone(), places[guid].1.clone()]).collect()
}

/// Words of the recorded lines after the headings.
fn recorded(output: &str, headings: &str) -> Vec<Vec<String>> {
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let lines = output.lines().skip_while(|line| words(line).join(" ") != headings).skip(1);
    lines.take_while(|line| !line.trim().is_empty()).map(words).collect()
}

/// The groups of the recording, which was made without default groups.
fn of_recording(rows: Vec<Vec<String>>) -> Vec<Vec<String>> {
    let seeded = |row: &Vec<String>| matches!(row[0].as_str(), "public_networks" | "dns");
    rows.into_iter().filter(|row| !seeded(row)).collect()
}

/// Compares the table of one command. Returns whether the command prints one.
pub(crate) fn check(command: &str, output: &str, replies: &[(String, Json)]) -> bool {
    let (ours, headings) = match command {
        "cf orgs" => (names(replies, "/v3/organizations"), "name"),
        "cf spaces" => (names(replies, "/v3/spaces"), "name"),
        "cf running-security-groups" | "cf staging-security-groups" => {
            (names(replies, "/v3/security_groups"), "name")
        }
        "cf security-groups" => (security_groups(replies), "name organization space lifecycle"),
        "cf security-group g1" => (spaces_of_group(replies), "organization space"),
        _ => return false,
    };
    let (ours, theirs) = (of_recording(ours), recorded(output, headings));
    assert_eq!(ours, theirs, "{command}: {output}");
    true
}
