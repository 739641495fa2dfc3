//! Repairs lost tables and lost rows of the set.

use std::sync::Arc;

use storage::server::{Dialect, Server, Transaction};

use super::{
    super::{
        Error, Mended,
        plan::{self, Loss},
    },
    load, tables, write,
};
use crate::groups::{decide::State, snapshot::Snapshot};

/// See [`super::super::Store::mend`].
pub(super) async fn mend(
    server: &Server,
    most: usize,
    served: Arc<Snapshot>,
) -> Result<Mended, Error> {
    server.mend(&|_| Vec::new()).await?;
    // The common case, no loss, takes no lock.
    if let Ok(state) = load::state(server).await {
        let has_groups = !server.query(ANY, &[]).await?.is_empty();
        if plan::loss(&state, has_groups, &served) == Loss::None {
            return Ok(Mended::Nothing);
        }
    }
    let dialect = server.dialect();
    server
        .transaction(async |transaction: Transaction| {
            transaction.execute(tables::seed(dialect), &[]).await?;
            let state = load::state_for_update(&transaction).await?;
            let has_groups = !transaction.query(ANY, &[]).await?.is_empty();
            match plan::loss(&state, has_groups, &served) {
                Loss::None => Ok(Mended::Nothing),
                Loss::Restore => {
                    restore(&transaction, dialect, most, &state, &served).await?;
                    Ok(Mended::Restored)
                }
                Loss::Forget => {
                    write::forget(&transaction).await?;
                    write::store_state(&transaction, &plan::forgotten(&state)).await?;
                    Ok::<_, Error>(Mended::Forgotten)
                }
            }
        })
        .await
}

const ANY: &str = "SELECT 1 FROM portcullis_security_groups LIMIT 1";

async fn restore(
    transaction: &Transaction,
    dialect: Dialect,
    most: usize,
    state: &State,
    served: &Snapshot,
) -> Result<(), Error> {
    write::forget(transaction).await?;
    let decision = plan::restoration(state, served);
    write::carry_out(transaction, (dialect, most), &decision, None).await?;
    write::notify(transaction, dialect).await
}
