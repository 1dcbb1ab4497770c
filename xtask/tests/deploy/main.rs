//! What is in `deploy/`, rendered by the programs that users render it with, and the image: each object is what the API
//! server would take, the chart and the overlays say the same, and the image holds what it should and no more.

// What the tests stand on.
mod objects;

mod schema;

// The questions.
mod chart;

mod image;

mod manifests;

mod pages;

mod secure;

mod sbom;
