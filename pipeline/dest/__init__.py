"""DEST as a transaction log: plan, parts, commit records, and who may write."""
