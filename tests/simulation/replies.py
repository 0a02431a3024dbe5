"""Replies of the kind a small model writes, and a sampler that draws them."""

import hashlib

REPLIES = (
    "I'm good at strategy. I'm good at solving problems. Just don't use emojis.",
    "I learned how to play the game of poker. It's about skill and luck. They also talked about",
    "You see what I am getting at?",
    "Ah, the sea was rough today and my knees told me so. What about your garden?",
    "I'm sorry, but I can't help with that. As an AI language model, I do not have personal feelings.",
    "It's great to hear from you! How can I assist you today? Feel free to ask me anything.",
    "Dear, the far, far, far, the farthest place I have been is in the desert. I had a chance to look and",
    "The bread is in the oven. Do you want some tea with it?",
    "- one thing\n- another thing\n- a third thing",
    "i like rain. do you?",
    "The building, you say? And what about a lamp? We have a few on display here, it is a rare one.",
    "Why robotic? It's a term that has no precise meaning.",
    "I would plant beans and wait! My aunt did so, and she fed the whole street with 12 rows.",
    "Listeners, tonight I play an old record for the lonely ones. Who broke your heart?",
    "Indeed, a scandal. I have seen worse in the reading room.",
    "The song of the nightingale, there's no echo of it. The song of the nightingale, there's no echo of it.",
    "I was very tired, sorry, please forgive me 😀😀😀😀😀",
    "[Your name] is here. User: what do you mean?",
    "Never mind the weather. My sheep do not.",
    "I",
)


class PoolSampler:
    """Draws from :data:`REPLIES` by a hash of the seed and the prompt."""

    def __init__(self, pool=REPLIES):
        self.pool = pool
        self.calls = []

    def sample(self, prompts, n, seed, progress=None):
        self.calls.append((len(prompts), n, seed))
        for _, history in prompts:
            assert history[-1]["role"] == "user"
        return [
            [self._draw(seed, place, prompt, k) for k in range(n)] for place, prompt in enumerate(prompts)
        ]

    def _draw(self, seed, place, prompt, k):
        key = f"{seed}|{place}|{k}|{prompt[1][-1]['content']}"
        return self.pool[int(hashlib.sha256(key.encode()).hexdigest(), 16) % len(self.pool)]
