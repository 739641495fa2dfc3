use super::*;

#[test]
fn the_handle_is_the_first_parameter_of_that_name() {
    for (query, handle) in [
        ("container=c1", Some("c1")),
        ("a=b&container=c1&container=c2", Some("c1")),
        ("container=check-%31%2Ba+b", Some("check-1+a b")),
        ("", None),
        ("container", None),
        ("container=", None),
        ("containers=c1", None),
        ("container=%zz", None),
        ("container=%e", None),
        ("container=%ff", None),
    ] {
        assert_eq!(container(query).as_deref(), handle, "{query}");
    }
}
