"""The wall around SQL: the ledger (our tables are the truth) and the dashboard's view of it (Optuna's tables)."""
