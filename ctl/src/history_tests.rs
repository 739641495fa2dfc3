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

#[test]
fn since_is_a_time_or_a_duration() {
    let hours = |hours| Since::Ago(SignedDuration::from_hours(hours));
    assert_eq!("2h".parse(), Ok(hours(2)));
    assert_eq!("7d".parse(), Ok(hours(168)));
    let at: Timestamp = "2026-11-29T12:00:00Z".parse().unwrap();
    assert_eq!("2026-11-29T12:00:00Z".parse(), Ok(Since::At(at)));
    assert_eq!(hours(2).time(at).to_string(), "2026-11-29T10:00:00Z");
    for bad in ["", "-1h", "0s", "0d", "soon", "99999999999999999d"] {
        bad.parse::<Since>().unwrap_err();
    }
}
