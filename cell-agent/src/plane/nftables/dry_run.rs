//! The transactions that would bring a ruleset into the kernel.

use super::{
    Belief, Error, NftablesPlane, Transaction,
    diff::{Change, Sweep, diff, replace, suspect},
    render::render,
};
use crate::plan::Ruleset;

impl NftablesPlane {
    /// Computes and checks the transactions of applying and sweeping, in order.
    pub(super) async fn transactions(
        &mut self,
        ruleset: &Ruleset,
    ) -> Result<Vec<Transaction>, Error> {
        let new_salt = self.new_salt();
        let (applied, wanted, is_known) = match &self.belief {
            Belief::Known(applied) => (applied.clone(), render(ruleset, &self.salt), true),
            Belief::Foreign(listing) => {
                let wanted = render(ruleset, &new_salt);
                (suspect(listing, &wanted), wanted, false)
            }
        };
        let mut changes = diff(&applied, &wanted, Sweep::Later);
        match self.accepts(&changes).await {
            Err(Error::Refused(_)) if !is_known => {
                changes = vec![replace(&wanted)];
                self.accepts(&changes).await?;
            }
            accepted => accepted?,
        }
        let left = changes.last().map_or(&applied, |change| &change.after);
        let sweep = diff(left, &wanted, Sweep::Now);
        let all = [changes.as_slice(), &sweep].concat();
        match self.accepts(&all).await {
            // Others may have added references to leftovers.
            Err(Error::Refused(_)) => changes.push(replace(&wanted)),
            accepted => {
                accepted?;
                changes = all;
            }
        }
        let transaction = |Change { script, .. }| Transaction::of_nft(script);
        Ok(changes.into_iter().map(transaction).collect())
    }

    /// Whether the kernel accepts these changes, each after the ones before it.
    async fn accepts(&self, changes: &[Change]) -> Result<(), Error> {
        if changes.is_empty() {
            return Ok(());
        }
        let script: String = changes.iter().map(|change| change.script.as_str()).collect();
        self.nft.check(&script).await
    }
}
