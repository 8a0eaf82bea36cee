"""`make chaos`: real servers and real workers, killed and unplugged at random while jobs run; then every job is checked."""
