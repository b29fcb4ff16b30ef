"""Trains a model on one batch."""

import torch


def overfit(model, ids, steps=20, learning_rate=1e-2):
    """Returns the loss of each step of AdamW on the parameters that are not frozen."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    losses = []
    for _ in range(steps):
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses
