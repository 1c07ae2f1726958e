//! Golden scripts: Kubernetes objects in, a readable map dump out.
