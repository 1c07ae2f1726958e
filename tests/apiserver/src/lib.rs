//! A stand-in for the Kubernetes API server, for Fairlead's demo and tests.
