"""The machine: processes, signals, storage, compiled programs, and TPUs that are not here."""
