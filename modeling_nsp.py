"""NSP, the Neural Scaling Predictor: benchmark scores of a model from its size, with uncertainty and emergence.

A task's score is `chance + (1 - chance) ceiling sigmoid(z)`. Its logit z is the sum of

- what size gives: non-negative loadings on capabilities, each the soft minimum of increasing functions of params,
  tokens and compute (`ScalingAttention`), so that the scarcest resource rules and every score rises with compute;
- what the architecture gives (`code`, `moe`);
- what the family gives: a Gaussian effect, correlated over tasks, inferred exactly from any known scores of siblings
  or of the model itself (`FamilyEffect`), because families differ in data quality far more than in size;
- a bounded correction by a transformer encoder over feature and score tokens. Its family side is blind to the size of
  the model in question, so that scores still rise with compute at fixed family; its size side sets the uncertainty.

Where scores are known, ridge regressions on them say half of it: on some of the model's own (`ScoreRegression`), or on
those of a sibling (`SiblingRegression`).

Shapes: batch = models, tasks = benchmarks, scores = known scores, seq = tokens of the encoder, hidden = its width.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.utils import ModelOutput

try:
    from transformers import initialization as init
except ImportError:
    # Young, and not promised to stay: torch's own functions do the same to a model that is made anew.
    from torch.nn import init
try:
    from .configuration_nsp import FEATURES, NSPConfig, NSPEnsembleConfig
    from .embedded_ncpl import ByName
    from .feature_extraction_nsp import NSPFeatureExtractor
    from .layers_nsp import Encoder, FamilyEffect, ScalingAttention, TaskHeads
    from .regression_nsp import KnownScores, Regression, ScoreRegression, SiblingRegression
    from .text_ncpl import as_number, check_level, listed, short
except ImportError:
    from configuration_nsp import FEATURES, NSPConfig, NSPEnsembleConfig
    from embedded_ncpl import ByName
    from feature_extraction_nsp import NSPFeatureExtractor
    from layers_nsp import Encoder, FamilyEffect, ScalingAttention, TaskHeads
    from regression_nsp import KnownScores, Regression, ScoreRegression, SiblingRegression
    from text_ncpl import as_number, check_level, listed, short

# Variance in squared logits per squared unit of ln(size) beyond the training data.
EXTRAPOLATION = 0.25
GAUSS_NEWTON_STEPS = 4
# Log ratio of params from which the regression on a smaller sibling has its full weight where it raises a score.
FULL_WEIGHT_RATIO = math.log(1.5)


@dataclass
class NSPOutput(ModelOutput):
    """What a forward pass gives.

    Args:
        loss: scalar, only when labels came.
        predictions: (batch, tasks), median score, between chance and 1.
        uncertainties: (batch, tasks), standard deviation of the score.
        emergence_scores: (batch, tasks), probability that the score is past chance by `emergence_threshold`.
        logits: (batch, tasks), z of the prediction.
        logit_deviations: (batch, tasks), standard deviation of z.
        hidden_states: one (batch, seq, hidden) for the embeddings and after each layer, on request.
        attentions: one (batch, heads, seq, seq) a layer, on request.
    """

    loss: Tensor | None = None
    predictions: Tensor = None
    uncertainties: Tensor = None
    emergence_scores: Tensor = None
    logits: Tensor = None
    logit_deviations: Tensor = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class NSPPreTrainedModel(ByName, PreTrainedModel):
    """Initialisation and loading."""

    config_class = NSPConfig
    config: NSPConfig
    base_model_prefix = "nsp"
    main_input_name = "features"
    accepts_loss_kwargs = False
    supports_gradient_checkpointing = False
    _no_split_modules: ClassVar[list[str]] = ["EncoderLayer"]
    _keep_in_fp32_modules_strict: ClassVar[list[str]] = ["regression", "sibling_regression"]

    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=std)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=std)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, Encoder):
            init.normal_(module.family, std=std)
            init.normal_(module.missing, std=1.0)
            # A bias far from zero, or the layer norm would turn a size's embedding into little more than its sign.
            for embedding in module.size:
                init.normal_(embedding.bias, std=1.0)
        elif isinstance(module, ScalingAttention):
            init.normal_(module.slopes, mean=0.0, std=0.3)
            init.normal_(module.offsets, std=0.5)
        elif isinstance(module, TaskHeads):
            init.normal_(module.bias, std=0.1)
            init.normal_(module.loadings, mean=0.5, std=0.3)
            init.zeros_(module.architecture)
            init.constant_(module.ceiling, 3.0)
            init.constant_(module.dip, -2.0)
            init.constant_(module.dip_at, -2.0)
            module.chance.copy_(torch.tensor(self.config.chance, dtype=torch.float32))
        elif isinstance(module, FamilyEffect):
            init.normal_(module.family_factors, std=0.3)
            init.normal_(module.model_factors, std=0.2)
            init.constant_(module.family_scales, -1.0)
            init.constant_(module.model_scales, -1.0)
            init.constant_(module.noise, math.log(0.02))
            init.zeros_(module.known_means)
            init.zeros_(module.known_covariances)
        elif isinstance(module, Regression):
            init.zeros_(module.centre)
            init.ones_(module.deviation)
            init.zeros_(module.moments)
            if isinstance(module, SiblingRegression):
                init.ones_(module.growth)


class NSPModel(NSPPreTrainedModel):
    """Benchmark scores of a language model from params, tokens and architecture, and from any scores already known.

    >>> model = NSPModel(NSPConfig()).eval()
    >>> model({"params": 7e9, "tokens": 2e12}).predictions.shape
    torch.Size([1, 12])
    """

    def __init__(self, config: NSPConfig) -> None:
        super().__init__(config)
        self.scaling = ScalingAttention(config)
        self.heads = TaskHeads(config)
        self.effect = FamilyEffect(config)
        self.encoder = Encoder(config)
        regressed = [list(config.tasks).index(task) for task in config.regression_tasks]
        chance = [config.chance[task] for task in regressed]
        self.regression = ScoreRegression(regressed, chance)
        self.sibling_regression = SiblingRegression(regressed, chance)
        self.post_init()

    @property
    def extractor(self) -> NSPFeatureExtractor:
        """Turns descriptions of models into this model's tensors."""
        return NSPFeatureExtractor(self.config.tasks, self.config.families, self.config.support)

    def forward(
        self,
        features: Any = None,
        feature_mask: Tensor | None = None,
        family_ids: Tensor | None = None,
        score_values: Tensor | None = None,
        score_tasks: Tensor | None = None,
        score_models: Tensor | None = None,
        score_mask: Tensor | None = None,
        score_features: Tensor | None = None,
        score_feature_mask: Tensor | None = None,
        labels: Tensor | None = None,
        label_weights: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> NSPOutput | tuple[Any, ...]:
        """Predicts scores.

        Args:
            features: (batch, 4) ln(params / 1e9), ln(tokens / 1e12), code, moe; or the extractor's whole output; or
                what the extractor reads: a mapping such as `{"params": 7e9, "tokens": 2e12}`, a list, a DataFrame, a
                config.
            feature_mask: (batch, 4), 1 where known; all known when absent.
            family_ids: (batch,), index into `config.families`, -1 for a new family.
            score_values: (batch, scores), known accuracies; tasks, mask and features are needed with them.
            score_tasks: (batch, scores), their tasks.
            score_models: (batch, scores), 0 for the model itself (when absent), 1.. for its siblings.
            score_mask: (batch, scores), 0 where padding.
            score_features: (batch, scores, 4), features of the model that was measured.
            score_feature_mask: (batch, scores, 4), where they are known.
            labels: (batch, tasks), scores to learn, NaN where not measured.
            label_weights: (batch, tasks), weights of the loss.

        Raises:
            ValueError: neither tensors nor anything the extractor reads.
        """
        config = self.config
        states_wanted = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        attentions_wanted = config.output_attentions if output_attentions is None else output_attentions
        return_dict = config.return_dict if return_dict is None else return_dict
        if not isinstance(features, Tensor):
            given = {**self._extract(features), **({} if labels is None else {"labels": labels})}
            given |= {"label_weights": label_weights, "output_hidden_states": states_wanted}
            return self.forward(**given, output_attentions=attentions_wanted, return_dict=return_dict)
        if features.dim() != 2 or features.shape[1] != len(FEATURES):
            raise ValueError(
                f"features: got a tensor of shape {tuple(features.shape)}, expected (batch, {len(FEATURES)})"
            )
        features = features.float()
        mask = torch.ones_like(features) if feature_mask is None else feature_mask.float()
        known = KnownScores.from_inputs(
            score_values, score_tasks, score_models, score_mask, score_features, score_feature_mask
        )
        logits, deviations, states, attentions = self._logits(features, mask, family_ids, known)
        output = self._output(logits, deviations, labels, label_weights)
        output.hidden_states = states if states_wanted else None
        output.attentions = attentions if attentions_wanted else None
        return output if return_dict else output.to_tuple()

    def _logits(
        self, features: Tensor, mask: Tensor, family_ids: Tensor | None, known: KnownScores | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Logits and their standard deviations, (batch, tasks); the encoder's states and attentions."""
        mean, deviations, size, scores = self._posterior(features, mask, family_ids, known)
        architecture = torch.cat([features[:, 2:] * mask[:, 2:], mask[:, 2:]], -1)
        shift, scale, states, attentions = self.encoder(size, mask[:, 1:2], architecture, scores)
        # The encoder may not narrow an interval where tokens are assumed or, the farther the less, sizes extrapolated.
        assumed = torch.maximum(1 - mask[:, 1:2], (self._beyond(features, mask) / EXTRAPOLATION).clamp(max=1)[:, None])
        scale = torch.where(scale < 0, scale * (1 - assumed), scale)
        logits, deviations = mean + shift, deviations * torch.exp(0.5 * scale)
        if known is not None and not self.training:
            if self.regression.fitted:
                logits = self._blend_own(logits, features, mask, known)
            if self.sibling_regression.fitted:
                new = None if family_ids is None else family_ids < 0
                logits = self._blend_sibling(logits, features, mask, known, new)
        return logits, deviations, states, attentions

    def _extract(self, features: Any) -> dict[str, Tensor]:
        """Tensors on this model's device from descriptions of models, or from the extractor's output."""
        if features is None:
            raise ValueError("features: missing; pass the extractor's output or a mapping such as {'params': 7e9}")
        if not (isinstance(features, Mapping) and isinstance(features.get("features"), Tensor)):
            features = self.extractor(features)
        return {name: value.to(self.device) for name, value in features.items()}

    def _posterior(
        self, features: Tensor, mask: Tensor, family_ids: Tensor | None, known: KnownScores | None
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor, Tensor] | None]:
        """Closed form and family effect: mean and standard deviation of the logits, size, tokens of known scores."""
        # A model that was measured itself has no curve over size that has to rise.
        rising = torch.ones_like(features[:, :1], dtype=torch.bool) if known is None else ~known.own.any(1, True)
        size, mean, by_tokens = self._prior(features, mask, rising)
        variance = self.effect.model_covariance().diagonal() + by_tokens**2
        variance = variance + self._unknown_architecture(mask).square().sum(-2) + self._beyond(features, mask)[:, None]
        family = self.effect.family_covariance()
        if family_ids is not None and (family_ids >= 0).any():
            familiar, index = (family_ids >= 0)[:, None], family_ids.clamp(min=0)
            mean = mean + familiar * self.effect.known_means[index].float()
            family = torch.where(familiar[..., None], self.effect.known_covariances[index].float(), family)
        variance = variance + family.diagonal(dim1=-2, dim2=-1)
        scores = None
        if known is not None:
            shift, reduction, scores = self._condition(features, mask, rising, family, mean, known)
            mean, variance = mean + shift, (variance - reduction).clamp(min=1e-6)
        return mean, variance.sqrt(), size, scores

    def _prior(self, features: Tensor, mask: Tensor, rising: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Logs of size (..., 3), mean logits, and the logits per standard deviation of missing tokens (..., tasks).

        `rising` (..., 1) is where the mean must not fall with size; nowhere when absent.
        """
        intercept, slope, deviation = self.config.tokens_prior
        params, missing = features[..., 0], 1 - mask[..., 1]
        tokens = torch.where(missing > 0, intercept + slope * params, features[..., 1])
        size = torch.stack([params, tokens, params + tokens], -1)
        capabilities, derivatives = self.scaling(size)
        mean = self.heads(capabilities) + (features * mask)[..., 2:] @ self.heads.architecture.float().T
        by_tokens = (derivatives[..., 1, :] + derivatives[..., 2, :]) @ self.heads.positive_loadings().T
        falls = torch.zeros_like(missing, dtype=torch.bool)[..., None] if rising is None else rising
        mean, bent = self.heads.bend(mean, falls)
        return size, mean, by_tokens * bent * (deviation * missing)[..., None]

    def _unknown_architecture(self, mask: Tensor) -> Tensor:
        """Logits per standard deviation of what is not said of the architecture, (..., features, tasks)."""
        rate = torch.tensor(self.config.feature_priors, dtype=torch.float32, device=mask.device)
        spread = (rate * (1 - rate)).sqrt() * (1 - mask[..., 2:])
        return spread[..., None] * self.heads.architecture.float().T

    def _beyond(self, features: Tensor, mask: Tensor) -> Tensor:
        low, high = torch.tensor(self.config.support, dtype=torch.float32, device=features.device).T
        inside = features[..., :2].clamp(low, high)
        return EXTRAPOLATION * ((features[..., :2] - inside).square() * mask[..., :2]).sum(-1)

    def _condition(
        self, features: Tensor, mask: Tensor, rising: Tensor, family: Tensor, mean: Tensor, known: KnownScores
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Given known scores: shift of the logits, reduction of their variance, (batch, tasks); score tokens.

        The posterior is Gaussian in the logits; Gauss-Newton steps follow the curvature of the sigmoid.
        """
        values, tasks, present = known.values, known.tasks, known.present
        _, prior, by_tokens = self._prior(known.features, known.mask)
        prior, by_tokens = (part.gather(-1, tasks[..., None])[..., 0] for part in (prior, by_tokens))
        _, target_mean, target_by_tokens = self._prior(features, mask, rising)
        # A known family's mean effect, which `mean` holds already, is its siblings' too.
        prior = prior + (mean - target_mean).gather(1, tasks)
        among, to_target = self._covariances(mask, family, by_tokens, known)
        noise = torch.where(present, self.effect.noise_variance()[tasks], 1.0)
        logits, real = prior, present.float()
        for _ in range(GAUSS_NEWTON_STEPS):
            scores, slopes = self.heads.scores(logits, tasks)
            slopes = slopes.clamp(min=1e-3) * real
            total = slopes[:, :, None] * among * slopes[:, None, :] + torch.diag_embed(noise)
            residual = (values - scores) * real + slopes * (logits - prior)
            weights = slopes * torch.linalg.solve(total, residual)
            logits = logits + ((among @ weights[..., None])[..., 0] - (logits - prior)).clamp(-2, 2)
        cross = (to_target + target_by_tokens[:, :, None] * by_tokens[:, None, :]) * slopes[:, None]
        reduction = (cross * torch.linalg.solve(total, cross.transpose(1, 2)).transpose(1, 2)).sum(-1)
        shift = (to_target @ weights[..., None])[..., 0]
        # Tokens missing here and there: the siblings' scores move the tokens, so that scores still rise with params.
        deviation = self.config.tokens_prior[2]
        moved = deviation * (by_tokens * weights).sum(-1) * (1 - mask[:, 1])
        nudged = features + torch.nn.functional.pad(moved[:, None], (1, 2))
        nudged[:, 1] = torch.where(mask[:, 1] > 0, features[:, 1], self._assumed_tokens(features) + moved)
        all_known = torch.cat([torch.ones_like(mask[:, :2]), mask[:, 2:]], -1)
        shift = shift + self._prior(nudged, all_known, rising)[1] - target_mean
        expected, _ = self.heads.scores(prior, tasks)
        described = torch.stack([(values - expected) / 0.1, expected, (known.models == 0).float()], -1)
        return shift, reduction, (described * real[..., None], tasks, present)

    def _covariances(
        self, mask: Tensor, family: Tensor, by_tokens: Tensor, known: KnownScores
    ) -> tuple[Tensor, Tensor]:
        """Prior covariances of logits: among the known scores (batch, scores, scores), and of the model's logits with
        them (batch, tasks, scores), the latter but for missing tokens."""
        tasks, models = known.tasks, known.models
        pick = tasks[..., None, None].expand(*tasks.shape, 2, 1)
        by_architecture = self._unknown_architecture(known.mask).gather(-1, pick)[..., 0]
        own = self.effect.model_covariance()
        batch = torch.arange(len(tasks), device=tasks.device)[:, None, None]
        family = family.expand(len(tasks), -1, -1)
        same = (models[:, :, None] == models[:, None, :]).float()
        among = (
            family[batch, tasks[:, :, None], tasks[:, None, :]]
            + own[tasks[:, :, None], tasks[:, None, :]] * same
            + by_tokens[:, :, None] * by_tokens[:, None, :]
            + by_architecture @ by_architecture.transpose(1, 2)
            + torch.diag_embed(self._beyond(known.features, known.mask))
        )
        to_target = (
            family[batch[..., 0], :, tasks].transpose(1, 2)
            + own[:, tasks].transpose(0, 1) * (models == 0).float()[:, None]
            + self._unknown_architecture(mask).transpose(1, 2) @ by_architecture.transpose(1, 2)
        )
        return among, to_target

    def _blend_own(self, logits: Tensor, features: Tensor, mask: Tensor, scores: KnownScores) -> Tensor:
        """Logits averaged with the regression's where scores of the model itself, and of no sibling, are known."""
        regressed = torch.tensor(self.regression.tasks, device=logits.device)
        values, known = scores.by_task((scores.tasks[..., None] == regressed) & scores.own[..., None])
        own = known.any(1) & ~scores.siblings.any(1)
        if not own.any():
            return logits
        described = torch.cat([self.regression_sizes(features, mask), self.regression.log_odds(values)], 1)
        which = torch.cat([torch.ones_like(described[:, : self.regression.SIZES]), known.float()], 1)
        predicted = self.regression(described[own], which[own])
        chance, span = self.heads.chance.float()[regressed], self.heads.span()[regressed]
        share = ((predicted - chance) / span).clamp(0.005, 0.995)
        ours = logits[own][:, regressed]
        blended = torch.where(known[own], ours, (ours + torch.logit(share)) / 2)
        rows = torch.nonzero(own)
        return logits.index_put((rows, regressed[None]), blended)

    def _blend_sibling(
        self, logits: Tensor, features: Tensor, mask: Tensor, scores: KnownScores, new: Tensor | None
    ) -> Tensor:
        """Logits averaged with the regression on the largest sibling, where nothing of the model itself is known.

        `new` (batch,) is where the family is not a known one; everywhere when absent. The average is one of log odds.
        Both rise with size, and so does the average: the regression, which knows larger models only, never lifts a
        score at the sibling's own size and below, and from there on more and more.
        """
        regression = self.sibling_regression
        regressed = torch.tensor(regression.tasks, device=logits.device)
        given = (scores.tasks[..., None] == regressed) & scores.siblings[..., None]
        sizes, which = self.regression_sizes(scores.features, scores.mask), given.any(-1)
        for column in range(2):  # the largest, and of these the longest trained
            key = sizes[..., column].masked_fill(~which, -math.inf)
            which = which & (key == key.amax(1, keepdim=True))
        at = which.any(1) & ~scores.own.any(1)
        at = at if new is None else at & new
        if not at.any():
            return logits
        values, known = (part[at] for part in scores.by_task(given & which[..., None]))
        sibling = (sizes * which[..., None]).sum(1)[at] / which.sum(1, keepdim=True)[at]
        size = self.regression_sizes(features, mask)[at]
        chance, span = self.heads.chance.float()[regressed], self.heads.span()[regressed]
        before = logits[at][:, regressed]
        ours = regression.log_odds(chance + span * torch.sigmoid(before))
        more = regression(size, sibling, regression.log_odds(values), known.float()) - ours
        larger = ((size - sibling)[:, :1] / FULL_WEIGHT_RATIO).clamp(0, 1)
        averaged = ours + (more.clamp(max=0) + larger * more.clamp(min=0)) / 2
        share = ((regression.scores(averaged) - chance) / span).clamp(0.005, 0.995)
        rows = torch.nonzero(at)
        return logits.index_put((rows, regressed[None]), torch.where(known, torch.logit(share), before))

    def regression_sizes(self, features: Tensor, mask: Tensor) -> Tensor:
        """(..., 3): ln params, ln tokens and code, what is missing at its expectation."""
        tokens = torch.where(mask[..., 1] > 0, features[..., 1], self._assumed_tokens(features))
        code = torch.where(mask[..., 2] > 0, features[..., 2], float(self.config.feature_priors[0]))
        return torch.stack([features[..., 0], tokens, code], -1)

    def _assumed_tokens(self, features: Tensor) -> Tensor:
        return self.config.tokens_prior[0] + self.config.tokens_prior[1] * features[..., 0]

    def _output(self, logits: Tensor, deviations: Tensor, labels: Tensor | None, weights: Tensor | None) -> NSPOutput:
        predictions, slopes = self.heads.scores(logits)
        noise = self.effect.noise_variance()
        uncertainties = (slopes.square() * deviations.square() + noise).sqrt()
        # Past chance: z above the logit of the threshold, whose noise counts as logits by the slope there.
        share = (self.config.emergence_threshold / torch.sigmoid(self.heads.ceiling.float())).clamp(max=0.99)
        slope_there = self.heads.span() * share * (1 - share)
        spread = (deviations.square() + noise / slope_there.square()).sqrt()
        slope, intercept = self.config.emergence_calibration
        emergence = torch.sigmoid(slope * (logits - torch.logit(share)) / spread + intercept)
        loss = None
        if labels is not None:
            loss = self._loss(predictions, uncertainties, labels.float(), weights)
        dtype = self.encoder.norm.weight.dtype
        return NSPOutput(
            loss=loss,
            predictions=predictions.to(dtype),
            uncertainties=uncertainties.to(dtype),
            emergence_scores=emergence.to(dtype),
            logits=logits.to(dtype),
            logit_deviations=deviations.to(dtype),
        )

    def _loss(self, predictions: Tensor, deviations: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        """Student-t negative log likelihood plus weighted absolute error, over the scores that were measured."""
        measured = ~labels.isnan()
        weight = measured.float() if weights is None else weights * measured
        error = torch.where(measured, labels, predictions.detach()) - predictions
        freedom = self.config.degrees_of_freedom
        likelihood = deviations.log() + (freedom + 1) / 2 * torch.log1p((error / deviations).square() / freedom)
        point = likelihood + self.config.absolute_error_weight * error.abs()
        return (point * weight).sum() / weight.sum().clamp(min=1e-9)

    def bounds(self, output: NSPOutput, multiples: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper score, (batch, tasks), `multiples` standard deviations (broadcast over them) away.

        The logit's spread is carried through the sigmoid, so that a band near chance or the ceiling is not symmetric;
        the noise of a measurement adds in quadrature.
        """
        logits, deviations = output.logits.float(), output.logit_deviations.float()
        centre, _ = self.heads.scores(logits)
        noise = multiples.square() * self.effect.noise_variance()
        below = centre - self.heads.scores(logits - multiples * deviations)[0]
        above = self.heads.scores(logits + multiples * deviations)[0] - centre
        lower = centre - (below.square() + noise).sqrt()
        return lower.clamp(min=0), (centre + (above.square() + noise).sqrt()).clamp(max=1)

    def interval(self, output: NSPOutput, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Lower and upper score, (batch, tasks), that hold a share `level` of new measurements.

        Args:
            output: of a forward pass.
            level: coverage, between 0 and 1.

        Raises:
            ValueError: a level that is not between 0 and 1.

        >>> model = NSPModel(NSPConfig()).eval()
        >>> lower, upper = model.interval(model({"params": 7e9, "tokens": 2e12}), 0.9)
        >>> bool((lower < upper).all())
        True
        """
        level = check_level(level)
        logits = output.logits
        normal = torch.distributions.Normal(0.0, 1.0)
        multiple = normal.icdf(torch.tensor((1 + level) / 2)).expand(logits.shape[1])
        if len(self.config.interval_levels):
            levels = torch.tensor(self.config.interval_levels)
            table = torch.tensor(self.config.interval_quantiles)  # (tasks, levels), in units of normal quantiles
            ratios = table / normal.icdf((1 + levels) / 2)
            at = torch.searchsorted(levels, torch.tensor(float(level))).clamp(1, len(levels) - 1)
            share = ((level - levels[at - 1]) / (levels[at] - levels[at - 1])).clamp(0, 1)
            multiple = multiple * (ratios[:, at - 1] * (1 - share) + ratios[:, at] * share)
        return self.bounds(output, multiple.to(logits.device, torch.float32))


class NSPEnsemble(ByName, PreTrainedModel):
    """A weighted mean of members in one repository: medians averaged, spread of the members added to their variance.

    >>> ensemble = NSPEnsemble.from_members([NSPModel(NSPConfig()), NSPModel(NSPConfig())]).eval()
    >>> ensemble({"params": 7e9, "tokens": 2e12}).predictions.shape
    torch.Size([1, 12])
    """

    config_class = NSPEnsembleConfig
    config: NSPEnsembleConfig
    base_model_prefix = "nsp_ensemble"
    main_input_name = "features"
    accepts_loss_kwargs = False
    _keep_in_fp32_modules_strict: ClassVar[list[str]] = ["regression", "sibling_regression"]
    _init_weights = NSPPreTrainedModel._init_weights

    def __init__(self, config: NSPEnsembleConfig) -> None:
        super().__init__(config)
        self.members = nn.ModuleList([NSPModel(NSPConfig(**(config.member or {}))) for _ in config.weights])
        self.post_init()

    @classmethod
    def from_members(cls, members: list[NSPModel], weights: list[float] | None = None) -> Self:
        """An ensemble of trained models.

        Args:
            members: models of one configuration.
            weights: their shares; equal when absent.

        Raises:
            ValueError: no members, members of different tasks, or not one positive weight a member.
        """
        models = listed(members, "members") or []
        if not models or not all(isinstance(model, NSPModel) for model in models):
            raise ValueError(f"members: got {short(members)}, expected a list of NSPModels")
        given = [1.0] * len(models) if weights is None else listed(weights, "weights") or []
        shares = [share for share in map(as_number, given) if share is not None and 0 < share < math.inf]
        if not len(shares) == len(given) == len(models):
            raise ValueError(
                f"weights: got {short(weights)}, one positive weight for each of {len(models)} members is needed"
            )
        members, weights = models, [float(share) for share in shares]
        if any(list(member.config.tasks) != list(members[0].config.tasks) for member in members):
            raise ValueError("members: their tasks differ; an ensemble averages models of the same tasks")
        ensemble = cls(NSPEnsembleConfig(member=members[0].config.to_diff_dict(), weights=weights))
        for own, member in zip(ensemble.members, members, strict=True):
            own.load_state_dict(member.state_dict())
        return ensemble

    @property
    def extractor(self) -> NSPFeatureExtractor:
        """Turns descriptions of models into the members' tensors."""
        return self.members[0].extractor

    def forward(self, features: Any = None, **inputs: Any) -> NSPOutput:
        """Predicts scores; arguments as `NSPModel`'s."""
        if not isinstance(features, Tensor) and not (isinstance(features, Mapping) and "features" in features):
            features = self.extractor(features)
        outputs = [member(features, **{**inputs, "return_dict": True}) for member in self.members]
        weights = torch.tensor(self.config.weights, device=self.device)
        weights = weights / weights.sum()

        def mean(name: str) -> Tensor:
            return torch.stack([getattr(output, name) for output in outputs], -1) @ weights.to(outputs[0].logits.dtype)

        def spread(name: str, deviations: str) -> Tensor:
            centre = mean(name)
            values = torch.stack([getattr(output, name) for output in outputs], -1)
            variances = torch.stack([getattr(output, deviations) for output in outputs], -1).square()
            return ((variances + (values - centre[..., None]).square()) @ weights.to(values.dtype)).sqrt()

        return NSPOutput(
            loss=None if outputs[0].loss is None else torch.stack([o.loss for o in outputs]) @ weights,
            predictions=mean("predictions"),
            uncertainties=spread("predictions", "uncertainties"),
            emergence_scores=mean("emergence_scores"),
            logits=mean("logits"),
            logit_deviations=spread("logits", "logit_deviations"),
            hidden_states=outputs[0].hidden_states,
            attentions=outputs[0].attentions,
        )

    def interval(self, output: NSPOutput, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Lower and upper score that hold a share `level` of new measurements, as `NSPModel.interval`."""
        bounds = [member.interval(output, level) for member in self.members]
        lower, upper = (torch.stack([bound[side] for bound in bounds]).mean(0) for side in (0, 1))
        return torch.minimum(lower, output.predictions), torch.maximum(upper, output.predictions)


NSPModel.register_for_auto_class("AutoModel")
NSPEnsemble.register_for_auto_class("AutoModel")
# Imported by itself, not as a checkpoint's own code: transformers' Auto classes then know it.
if not __package__:
    AutoModel.register(NSPConfig, NSPModel, exist_ok=True)
    AutoModel.register(NSPEnsembleConfig, NSPEnsemble, exist_ok=True)
