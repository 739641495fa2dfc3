use super::*;

fn group(name: &str, ports: &[&str], spaces: &[&str]) -> SecurityGroup {
    let rule = |ports: &&str| Rule {
        protocol: "tcp".to_owned(),
        destination: "10.0.0.1".to_owned(),
        ports: (*ports).to_owned(),
        ..Rule::default()
    };
    SecurityGroup {
        guid: "g1".to_owned(),
        name: name.to_owned(),
        rules: ports.iter().map(rule).collect(),
        running_space_guids: spaces.iter().map(|&space| space.to_owned()).collect(),
        ..SecurityGroup::default()
    }
}

fn lines(before: Option<&SecurityGroup>, after: Option<&SecurityGroup>) -> Vec<String> {
    let lines = compare(before, after);
    let text = |line: &Line| format!("{} {} {} {}", line.group, line.sign, line.part, line.text);
    lines.iter().map(text).collect()
}

#[test]
fn differences_are_named_by_part() {
    let old = || group("old", &["1", "2", "2"], &["s1"]);
    let mut new = group("new", &["2", "3"], &["s2"]);
    new.staging_default = true;
    assert_eq!(
        lines(Some(&old()), Some(&new)),
        [
            "new - name old",
            "new + name new",
            "new - rule tcp 10.0.0.1 1",
            "new - rule tcp 10.0.0.1 2",
            "new + rule tcp 10.0.0.1 3",
            "new - running space s1",
            "new + running space s2",
            "new + staging all spaces",
        ]
    );
    let expected = ["old - name old", "old - rule tcp 10.0.0.1 1"];
    assert_eq!(lines(Some(&group("old", &["1"], &[])), None), expected);
    assert_eq!(lines(None, Some(&group("new", &[], &[]))), ["new + name new"]);
    let turned = group("old", &["2", "2", "1"], &["s1"]);
    assert_eq!(lines(Some(&old()), Some(&turned)), ["old ~ rule the same in another order"]);
}

#[test]
fn a_rule_has_all_of_its_fields() {
    let one = Rule {
        protocol: "icmp".to_owned(),
        destination: "10.0.0.0/8".to_owned(),
        r#type: 8,
        log: true,
        description: "ping".to_owned(),
        ..Rule::default()
    };
    assert_eq!(rule(&one), "icmp 10.0.0.0/8 type 8 code 0 log \"ping\"");
}
