"""The data room: tasks, subsets, batches and corpora."""
