"""The only reader and writer of every artifact: schemas, versions, atomic writes."""
