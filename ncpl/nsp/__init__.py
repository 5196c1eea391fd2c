"""NSP around its model: leaderboards as tensors, fitting, leave-family-out evaluation, loss to scores, forecasts."""
