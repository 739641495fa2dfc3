//! From the command line to the request.

use anyhow::anyhow;
use proto::policy_v1::{WhatIfRequest, what_if_request::Rules};

use super::file;
use crate::cli::WhatIf;

/// The request for the change that the command line describes, with the rules from the file.
pub(super) fn request(change: &WhatIf) -> anyhow::Result<WhatIfRequest> {
    let WhatIf { file, group, bind, unbind, delete, wide } = change;
    let wide_prefix = (*wide).into();
    if let Some(group) = delete {
        let group = group.clone();
        return Ok(WhatIfRequest { group, delete: true, wide_prefix, ..Default::default() });
    }
    let written = file.as_deref().map(file::read).transpose()?;
    let (name, rules) = match written {
        Some(written) => (written.name, Some(Rules { rules: written.rules })),
        None => (None, None),
    };
    let group = group.clone().or(name).filter(|group| !group.is_empty());
    let missing = || anyhow!("what-if: --group is missing: the name or GUID of the group");
    Ok(WhatIfRequest {
        group: group.ok_or_else(missing)?,
        rules,
        bind: bind.iter().map(|bound| bound.0.clone()).collect(),
        unbind: unbind.iter().map(|bound| bound.0.clone()).collect(),
        delete: false,
        wide_prefix,
    })
}
