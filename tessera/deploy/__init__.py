"""What an installation consists of, as Kubernetes objects generated from the config: nothing of it is written by hand twice."""
