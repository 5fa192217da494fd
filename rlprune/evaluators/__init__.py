"""Who measures candidates: this process, others on this machine, or Ray's on many."""
