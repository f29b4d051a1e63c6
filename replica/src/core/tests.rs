//! Properties of the staging.
