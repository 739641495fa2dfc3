//! Conversions between the cell contract and the model.

use model::group::Lifecycle;

use crate::cell_v1;

impl From<Lifecycle> for cell_v1::Lifecycle {
    fn from(lifecycle: Lifecycle) -> Self {
        match lifecycle {
            Lifecycle::Running => Self::Running,
            Lifecycle::Staging => Self::Staging,
        }
    }
}
