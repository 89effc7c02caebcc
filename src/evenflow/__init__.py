"""evenflow: serves large language models the way an operating system runs processes."""
