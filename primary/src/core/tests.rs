//! Properties of the pipeline.
