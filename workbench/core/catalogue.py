"""The papers in scope: stem, family and short title. Light to import: `workbench list` and the README table read it.

Whether a paper is ready is not written here: it is ready when `workbench/papers/<family>/<stem>/method.py` exists.
"""

from dataclasses import dataclass
from pathlib import Path

from .errors import UnknownName


@dataclass(frozen=True)
class Paper:
    """A paper in scope."""

    stem: str
    family: str
    title: str

    @property
    def module(self) -> str:
        """Dotted name of the paper's package, whether or not it exists yet."""
        return f"workbench.papers.{self.family}.{self.stem}"

    @property
    def is_ready(self) -> bool:
        return (Path(__file__).parents[1] / "papers" / self.family / self.stem / "method.py").is_file()


FAMILIES = {
    "attention": "where attention goes, and which heads do nothing",
    "memorization": "what a model keeps of its training data, and how privacy limits it",
    "safety": "which parts carry refusal, sycophancy and alignment",
    "backdoors": "planted behaviours, their traces and their removal",
    "misalignment": "narrow training that misaligns broadly",
    "unlearning": "making a model forget, and checking that it did",
    "reasoning": "steering, shortening and testing chains of thought",
    "adaptation": "fine-tuning, merging, experts, scaling and compression",
    "generative": "text-to-image models and other generators",
}

_TITLES = {
    "attention": {
        "attention_sinks": "Identifying and Evaluating Inactive Heads in Pretrained LLMs",
        "attrieval": (
            "Attention Reveals More Than Tokens: Training-Free Long-Context Reasoning with Attention-guided Retrieval"
        ),
        "video_diffusion_attention": "Attention in Video Diffusion Transformers",
    },
    "memorization": {
        "layernorm_memorization": "Impact of Layer Norm on Memorization and Generalization in Transformers",
        "critical_weights_rewind": "Learnability and Privacy Vulnerability are Entangled in a Few Critical Weights",
        "pptp": "Decoupling Generalizability and Membership Privacy Risks in Neural Networks",
        "srcm": "Representation Magnitude has a Liability to Privacy Vulnerability",
        "icp_mia": "In-Context Probing for Membership Inference in Fine-Tuned Language Models",
        "privacy_auditing_canaries": "Privacy Auditing of Large Language Models",
        "neural_phishing": "Teach LLMs to Phish: Stealing Private Information from Language Models",
        "dp_zo": "Private Fine-tuning of Large Language Models with Zeroth-order Optimization",
        "dp_linear_scaling": "A New Linear Scaling Rule for Private Adaptive Hyperparameter Optimization",
        "dp_randp": "Differentially Private Image Classification by Learning Priors from Random Processes",
        "dp_icl": "Privacy-Preserving In-Context Learning for Large Language Models",
    },
    "safety": {
        "safety_units": "Superficial Safety Alignment Hypothesis",
        "shallow_alignment": "Safety Alignment Should Be Made More Than Just a Few Tokens Deep",
        "refusal_tokens": "A Simple Way to Calibrate Refusals in Large Language Models",
        "refusal_directions": "From Refusal Tokens to Refusal Control: Category-Specific Refusal Directions",
        "alignment_aware_pruning": (
            "Alignment-Constrained Dynamic Pruning: Identifying and Preserving Alignment-Critical Circuits"
        ),
        "sycophancy_neurons": "A Few Bad Neurons: Isolating and Surgically Correcting Sycophancy",
        "dynaguard": "A Dynamic Guardian Model With User-Defined Policies",
        "visual_jailbreak": "Visual Adversarial Examples Jailbreak Aligned Large Language Models",
        "safety_mirage": "How Spurious Correlations Undermine VLM Safety Fine-tuning",
        "reasoning_safety": "The Hidden Risks of Large Reasoning Models: A Safety Assessment of R1",
        "evaluation_awareness": "Evaluation Awareness Scales Predictably in Open-Weights LLMs",
        "value_palette": "Multi-Human-Value Alignment Palette",
    },
    "backdoors": {
        "backdoor_signatures": "Purifying Generative LLMs from Backdoors without Prior Knowledge or Clean Reference",
        "secret_alignment": (
            "Retire the 'Positive Backdoor' Label; Secret Alignment Requires Strict and Systematic Evaluation"
        ),
        "neurotoxin": "Durable Backdoors in Federated Learning",
        "sparsefed": "Mitigating Model Poisoning Attacks in Federated Learning with Sparsification",
        "fetchsgd": "Communication-Efficient Federated Learning with Sketching",
        "prefix_tuning_poisoning": "Turning Generative Models Degenerate: The Power of Data Poisoning Attacks",
        "prodif": "Protecting Domain-Invariant Features to Secure Pre-Trained Models Against Extraction",
    },
    "misalignment": {
        "em_subspaces": "Shared Parameter Subspaces and Cross-Task Linearity in Emergently Misaligned Behavior",
        "em_in_context": "Emergent Misalignment via In-Context Learning",
    },
    "unlearning": {
        "r2mu": "Reasoning Model Unlearning: Forgetting Traces, Not Just Answers, While Preserving Reasoning Skills",
        "wagle": "Strategic Weight Attribution for Effective and Modular Unlearning in Large Language Models",
        "spunge": "Split, Unlearn, Merge: Leveraging Data Attributes for More Effective Unlearning in LLMs",
        "rethinking_unlearning": "Rethinking Machine Unlearning for Large Language Models",
        "forget_vectors": (
            "Forget Vectors at Play: Universal Input Perturbations Driving Machine Unlearning in Image Classification"
        ),
        "uoe": "Unlearning One Expert Is Enough for Mixture-of-Experts LLMs",
    },
    "reasoning": {
        "dense_steer": "Steering Small Language Models towards Dense Math Reasoning",
        "amortized_steering": "Amortized Latent Steering: Low-Cost Alternative to Test-Time Optimization",
        "salt": "Steering Activations towards Leakage-free Thinking in Chain of Thought",
        "frit": "Using Causal Importance to Improve Chain-of-Thought Faithfulness",
        "answer_instability": "Modeling and Predicting Multi-Turn Answer Instability in LLMs",
        "multi_token_prediction": "Multi-Token Prediction via Self-Distillation",
        "epic": "Towards Lossless Speedup for Reasoning Training through Edge-Preserving CoT Condensation",
        "legal_reasoning": "Investigating the Shortcomings of LLMs in Step-by-Step Legal Reasoning",
    },
    "adaptation": {
        "lori": "Reducing Cross-Task Interference in Multi-Task Low-Rank Adaptation",
        "lota": "Lottery Ticket Adaptation: Mitigating Destructive Interference in LLMs",
        "default_moe": "Dense Backpropagation Improves Training for Sparse Mixture-of-Experts",
        "continual_moe": "Continual Pre-training of MoEs: How robust is your router?",
        "speculating_experts": "Speculating Experts Accelerates Inference for Mixture-of-Experts",
        "gemstones": "A Model Suite for Multi-Faceted Scaling Laws",
        "resque": "Quantifying Estimator to Task and Distribution Shift for Sustainable Model Reusability",
        "ptq_disparate_impact": "Explaining How Quantization Disparately Skews a Model",
        "mimo_multimodal": "Mitigating Modality Imbalance in Multi-modal Learning via Multi-objective Optimization",
        "joint_post_training": "Understanding Forgetting in LLM Supervised Fine-Tuning and Preference Learning",
    },
    "generative": {
        "finegrain": "Evaluating Failure Modes of Text-to-Image Models with Vision Language Model Judges",
        "quota": "Quantifying Objects with Text-to-Image Models for Any Domain",
        "bilevel_diffusion": "A First-order Generative Bilevel Optimization Framework for Diffusion Models",
        "vsa_ldc": "Towards Vector Optimization on Low-Dimensional Vector Symbolic Architecture",
    },
}

PAPERS: dict[str, Paper] = {
    stem: Paper(stem, family, title) for family, titles in _TITLES.items() for stem, title in titles.items()
}


def paper(stem: str) -> Paper:
    """The paper of this stem.

    Raises:
        UnknownName: with the closest stems.
    """
    if stem not in PAPERS:
        raise UnknownName.among("paper", stem, PAPERS, "`workbench list` shows all.")
    return PAPERS[stem]
