"""Losses are at hand: which candidate will be the best on far more examples?"""

import lensllm_jax as lens

print(lens.list_loss_tables())
table = lens.load_loss_table("lin2024/flan")  # of your own losses: lens.read_loss_table("mine.csv")
ranking = lens.rank(table, budget_size=204800, target_size=1638400)
print(ranking.selected, f"is the best with P = {ranking.probability_best[ranking.selected]:.2f}")

truth = table.by_name(1638400)  # which the ranking did not read
predicted, measured = zip(*((ranking.predicted[n], truth[n]) for n in table.names), strict=True)
print(f"PearCorr {lens.pearson_correlation(predicted, measured):.1f} %")
print(f"RelAcc {lens.relative_accuracy(truth[ranking.selected], measured):.1f} %")
