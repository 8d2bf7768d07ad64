"""What a record looks like, and how records are read: schema, sources, and local bindings."""
