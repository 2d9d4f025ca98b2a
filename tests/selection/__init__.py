"""Tests of loss tables, selectors and the ledger."""
