//! Routing. Paths, methods and error responses are those of the original
//! (docs/compatibility/policy-server-internal.md#routes).

use http::Method;
use percent_encoding::percent_decode_str;

/// Supported routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// Container-to-container policies.
    Policies,
    /// Last update of those policies.
    PoliciesLastUpdated,
    /// Security groups.
    SecurityGroups,
    /// Last update of the security groups.
    SecurityGroupsLastUpdated,
    /// Tag of an app group.
    CreateTags,
}

impl Route {
    /// Path after the version, method, and route.
    const ALL: [(&'static str, Method, Self); 5] = [
        ("internal/policies", Method::GET, Self::Policies),
        ("internal/policies_last_updated", Method::GET, Self::PoliciesLastUpdated),
        ("internal/security_groups", Method::GET, Self::SecurityGroups),
        ("internal/security_groups_last_updated", Method::GET, Self::SecurityGroupsLastUpdated),
        ("internal/tags", Method::PUT, Self::CreateTags),
    ];

    /// Name of the handler in log lines.
    #[must_use]
    pub fn handler(self) -> &'static str {
        match self {
            Self::Policies => "index-policies-internal",
            Self::PoliciesLastUpdated => "policies-last-updated-internal",
            Self::SecurityGroups => "index-security-group-rules",
            Self::SecurityGroupsLastUpdated => "security-groups-last-updated-internal",
            Self::CreateTags => "create-tags",
        }
    }

    /// The original's name in metrics.
    #[must_use]
    pub fn metric(self) -> &'static str {
        match self {
            Self::Policies => "InternalPolicies",
            Self::PoliciesLastUpdated => "InternalPoliciesLastUpdated",
            Self::SecurityGroups => "InternalSecurityGroups",
            Self::SecurityGroupsLastUpdated => "InternalSecurityGroupsLastUpdated",
            Self::CreateTags => "CreateTags",
        }
    }
}

/// Result of routing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Routed {
    /// The route exists.
    To(Route),
    /// The path exists with another method.
    NotAllowed(Method),
    /// The path does not exist.
    NotFound,
}

/// Routes a request. The version is not checked, except that tags have only one. The path
/// is unescaped first.
#[must_use]
pub fn route(method: &Method, path: &str) -> Routed {
    let path = percent_decode_str(path).decode_utf8_lossy();
    let Some((version, rest)) =
        path.strip_prefix("/networking/").and_then(|rest| rest.split_once('/'))
    else {
        return Routed::NotFound;
    };
    let found = Route::ALL.into_iter().find(|(path, _, _)| *path == rest);
    match found {
        Some((_, _, Route::CreateTags)) if version != "v1" => Routed::NotFound,
        Some((_, served, route)) if served == method => Routed::To(route),
        Some((_, served, _)) => Routed::NotAllowed(served),
        None => Routed::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_methods() {
        let get = |path: &str| route(&Method::GET, path);
        for version in ["v0", "v1", "v7", ""] {
            let path = |rest: &str| format!("/networking/{version}/internal/{rest}");
            assert_eq!(get(&path("policies")), Routed::To(Route::Policies));
            assert_eq!(get(&path("policies_last_updated")), Routed::To(Route::PoliciesLastUpdated));
            assert_eq!(get(&path("security_groups")), Routed::To(Route::SecurityGroups));
            let last = Routed::To(Route::SecurityGroupsLastUpdated);
            assert_eq!(get(&path("security_groups_last_updated")), last);
            assert_eq!(get(&path("policie%73")), Routed::To(Route::Policies));
            assert_eq!(get(&path("healthcheck")), Routed::NotFound);
            assert_eq!(get(&path("policies/")), Routed::NotFound);
            let put = route(&Method::PUT, &path("security_groups"));
            assert_eq!(put, Routed::NotAllowed(Method::GET));
            let head = route(&Method::HEAD, &path("policies"));
            assert_eq!(head, Routed::NotAllowed(Method::GET));
        }
        let tags = "/networking/v1/internal/tags";
        assert_eq!(route(&Method::PUT, tags), Routed::To(Route::CreateTags));
        assert_eq!(get(tags), Routed::NotAllowed(Method::PUT));
        assert_eq!(route(&Method::PUT, "/networking/v0/internal/tags"), Routed::NotFound);
        for path in ["/", "/networking", "/networking/", "/networking/v1%2fa/internal/policies"] {
            assert_eq!(get(path), Routed::NotFound, "{path}");
        }
    }
}
