"""What the fork server imports. Importing starts no thread that a forked process would miss."""

import tests.compress.train.faulty  # noqa: F401
