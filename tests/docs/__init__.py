"""The pages of docs/ and CONTRIBUTING.md."""
