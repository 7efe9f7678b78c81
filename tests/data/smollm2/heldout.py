"""Plan which hives of an apiary to open on a given day, and in which order."""

import heapq
from collections import defaultdict


class Hive:
    """A hive on one of the terraces, with the weights its scale has reported."""

    def __init__(self, number, terrace, frames=10):
        self.number = number
        self.terrace = terrace
        self.frames = frames
        self.readings = []

    def record(self, day, grams):
        if self.readings and day <= self.readings[-1][0]:
            raise ValueError("hive %d: day %d was already recorded" % (self.number, day))
        self.readings.append((day, grams))

    def daily_gain(self):
        if len(self.readings) < 2:
            return 0.0
        (first_day, first), (last_day, last) = self.readings[0], self.readings[-1]
        return (last - first) / (last_day - first_day)


def urgency(hive, rain_expected):
    """Higher is more urgent: a full hive swarms, a shrinking one may have lost its queen."""
    gain = hive.daily_gain()
    score = abs(gain) / hive.frames
    if gain < 0:
        score *= 1.75
    return score / 2 if rain_expected else score


def plan_round(hives, minutes, rain_expected=False):
    queue = [(-urgency(hive, rain_expected), hive.number) for hive in hives]
    heapq.heapify(queue)
    by_number = {hive.number: hive for hive in hives}
    visits = defaultdict(list)
    while queue and minutes > 0:
        _, number = heapq.heappop(queue)
        hive = by_number[number]
        minutes -= 4 + 2 * hive.frames
        visits[hive.terrace].append(number)
    return dict(visits)
