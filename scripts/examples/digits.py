import torch
from sklearn.datasets import load_digits
from torch import nn

import rlprune

digits = load_digits()
inputs, targets = torch.tensor(digits.images).float().unsqueeze(1) / 16, torch.tensor(digits.target)
model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for chunk in torch.arange(1400).repeat(5).split(50):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(inputs[chunk]), targets[chunk]).backward()
    optimizer.step()

train, test = (inputs[:1400], targets[:1400]), (inputs[1400:], targets[1400:])
result = rlprune.compress(model, train, test_data=test, agent="mcq", macs=0.5)
print(result.report)  # a table in Markdown
result.save("small")  # rlprune.load("small", model=model) loads it
