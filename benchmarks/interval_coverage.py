import sys, time
import numpy as np
from replication import areas, class_figures, intervals, shares
from replication.intervals import confusion_statistics, weighted_aucs
from replication.abstention import _accumulated


class World:
    def __init__(self, k, rare, hard, models, seed):
        self.k, self.rare, self.hard = k, rare, hard
        self.rng = np.random.default_rng(seed)
        self.biases = self.rng.normal(0, 0.35, size=(models, k))
        self.skill = self.rng.normal(0, 0.35, size=models)

    def draw(self, rng, G):
        k = self.k
        sizes = 1 + rng.geometric(1 / 8, size=G)
        if self.rare:
            prior = 0.6 ** np.arange(k - 1)
            comp = rng.dirichlet(1.5 * prior / prior.sum(), size=G) if k > 2 else np.ones((G, 1))
            part = rng.beta(1, 2, size=G) * (rng.random(G) < 0.06)
            comp = np.hstack([comp * (1 - part[:, None]), part[:, None]])
        else:
            comp = rng.dirichlet(np.full(k, 1.2 / k), size=G)
        g = np.repeat(np.arange(G), sizes)
        n = len(g)
        y = (rng.random(n)[:, None] > comp.cumsum(1)[g]).sum(1).clip(0, k - 1)
        stain, ease = rng.normal(0, 0.7, (G, k)), rng.normal(0, 0.7, G)
        far = np.abs(np.arange(k)[:, None] - np.arange(k)[None])
        base = -0.5 * self.hard * np.minimum(far, 2)[y] + stain[g]
        base[np.arange(n), y] += 0.4 * self.hard + ease[g]
        base += 0.6 * rng.gumbel(size=(n, k))
        L = base + self.biases[:, None] + 0.4 * rng.gumbel(size=(len(self.skill), n, k))
        L[:, np.arange(n), y] += self.skill[:, None]
        p = np.exp(1.3 * (L - L.max(-1, keepdims=True)))
        p /= p.sum(-1, keepdims=True)
        return y, g, p


def counts(y, pred, k):
    c = np.zeros((k, k))
    np.add.at(c, (y, pred), 1)
    return c


def ece(w, y, p, bins=15):
    s, hit = p.max(1), p.argmax(1) == y
    b = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], s, side="left")
    return np.abs((w * (s - hit)) @ np.eye(bins)[b]).sum(1) / w.sum(1)


def aurc(w, y, p):
    return _accumulated(p.max(1), p.argmax(1) != y, w)[2]


NAMES = [
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "macro_precision",
    "quadratic_kappa",
    "weighted_f1",
]


def main():
    R = int(sys.argv[1])
    Gs = list(map(int, sys.argv[2].split(",")))
    Ss = list(map(int, sys.argv[3].split(",")))
    ks = list(map(int, sys.argv[4].split(",")))
    for k in ks:
        for rare in (0, 1):
            for hard in (1.6, 4.0):
                for S in Ss:
                    wd = World(k, rare, hard, 2 * S, 7 + k)
                    rng = np.random.default_rng(5)
                    Y, g_, P = wd.draw(rng, 20000)
                    pop = np.stack([counts(Y, p.argmax(1), k) for p in P])
                    last = k - 1
                    rates = pop / pop.sum(2, keepdims=True)
                    one = np.ones((1, len(Y)))
                    auc = np.array(
                        [
                            [weighted_aucs(one, Y == c, p[:, c])[0][0] for c in range(k)]
                            for p in P[:S]
                        ]
                    ).mean(0)
                    ap = np.mean([weighted_aucs(one, Y == last, p[:, last])[1][0] for p in P[:S]])
                    acc = np.array([(p.argmax(1) == Y).mean() for p in P])
                    ll = -np.log(P[0][np.arange(len(Y)), Y]).mean()
                    br = ((P[0] - np.eye(k)[Y]) ** 2).sum(1).mean()
                    EC, AU = ece(one, Y, P[0])[0], aurc(one, Y, P[0])[0]
                    ppv = np.mean([c[last, last] / c[:, last].sum() for c in pop[:S]])
                    sens = rates[:S, last, last].mean()
                    for G in Gs:
                        got = {}

                        def add(name, iv, truth, value=None):
                            lo, hi = (iv.low, iv.high) if hasattr(iv, "low") else iv
                            got.setdefault(name, []).append((lo, hi, truth))

                        for r in range(R):
                            y, g, p = wd.draw(rng, G)
                            groups = [str(x) for x in g]
                            pred = p.argmax(-1)
                            right = (pred[:S] == y).mean(0)
                            every = np.ones(len(y), bool)
                            present = np.bincount(y, minlength=k) > 0
                            add("share acc", shares.share(right, every, groups), acc[:S].mean())
                            if present[last]:
                                add("share sens last", shares.share(right, y == last, groups), sens)
                            if (pred[0] == last).any():
                                add(
                                    "share ppv last",
                                    shares.share(y == last, pred[0] == last, groups),
                                    pop[0][last, last] / pop[0][:, last].sum(),
                                )
                            names = NAMES + [f"f1 {c}" for c in (0, last) if present[c]]
                            f = class_figures.mean_figures(present, range(k), names)
                            support = np.bincount(y, minlength=k)
                            t = {
                                n: float(v[0])
                                for n, v in f((rates[:S] * support[:, None])[None]).items()
                            }
                            for n, iv in class_figures.confusion_intervals(
                                y, pred[:S], groups, f, classes=k, resamples=300, seed=r
                            ).items():
                                add(n, iv, t[n])
                            t2 = {
                                n: float(v[0])
                                for n, v in f((rates[S:] * support[:, None])[None]).items()
                            }
                            for n, iv in class_figures.difference_intervals(
                                y, pred[:S], pred[S:], groups, f, classes=k, resamples=300, seed=r
                            ).items():
                                if n in NAMES:
                                    add("diff " + n, iv, t[n] - t2[n])
                            if present[last] and not (y == last).all():
                                add(
                                    "roc last",
                                    areas.roc_interval(
                                        p[None, :S, :, last], (y == last)[None], groups
                                    ),
                                    auc[last],
                                )
                            some = np.flatnonzero(present)
                            if len(some) > 1:
                                add(
                                    "roc macro",
                                    areas.roc_interval(
                                        np.stack([p[:S, :, c] for c in some]),
                                        np.stack([y == c for c in some]),
                                        groups,
                                    ),
                                    auc[some].mean(),
                                )
                            add(
                                "log loss",
                                areas.mean_interval(-np.log(p[0][np.arange(len(y)), y]), groups),
                                ll,
                            )
                            bb = ((p[0] - np.eye(k)[y]) ** 2).sum(1)
                            add("brier share", shares.share(bb / 2, every, groups), br / 2)
                            x = np.bincount(g, -np.log(p[0][np.arange(len(y)), y]))
                            if x.sum() ** 2 / (x**2).sum() >= 10:
                                add(
                                    "log loss gated",
                                    areas.mean_interval(
                                        -np.log(p[0][np.arange(len(y)), y]), groups
                                    ),
                                    ll,
                                )
                            if len(some) > 1:
                                add(
                                    "bacc share",
                                    0 * 0 or shares.share(right, every, groups),
                                    acc[:S].mean(),
                                )
                            add(
                                "brier",
                                areas.mean_interval(((p[0] - np.eye(k)[y]) ** 2).sum(1), groups),
                                br,
                            )
                            if S == Ss[0]:
                                st = lambda w: {
                                    "ece": ece(w, y, p[0]),
                                    "aurc": aurc(w, y, p[0]),
                                    **(
                                        {
                                            "ap": np.mean(
                                                [
                                                    weighted_aucs(w, y == last, q[:, last])[1]
                                                    for q in p[:S]
                                                ],
                                                0,
                                            )
                                        }
                                        if present[last]
                                        else {}
                                    ),
                                }
                                for n, iv in intervals.percentile_bootstrap(
                                    st, groups, resamples=300, seed=r
                                ).items():
                                    add("boot " + n, iv, {"ece": EC, "aurc": AU, "ap": ap}[n])
                        print(
                            f"k={k} rare={rare} hard={hard} S={S} G={G} acc={acc[:S].round(2)} sensK={sens:.2f}"
                        )
                        for n, x in got.items():
                            x = np.array(x, float)
                            ok = np.isfinite(x[:, 0])
                            if ok.sum() < 10:
                                print(f"    {n:24} no intervals ({ok.sum()})")
                                continue
                            c = ((x[:, 0] <= x[:, 2] + 1e-12) & (x[:, 2] <= x[:, 1] + 1e-12))[
                                ok
                            ].mean()
                            print(
                                f"    {n:24} {100 * c:.0f} width {np.mean((x[:, 1] - x[:, 0])[ok]):.3f} told {ok.mean():.2f}"
                                + ("   <<<" if c < 0.9 else ""),
                                flush=True,
                            )


main()
