"""The Chinese of what `rlhf preferences make`, `from-run` and `from-scores` say."""

CHINESE: dict[str, str] = {
    "Reading {what} …": "读取 {what} …",
    # make
    "Data": "数据",
    "Going on with what is in {folder}": "接着 {folder} 里已有的继续",
    "Judging answers": "评判回答",
    "Note": "说明",
    "Nothing was sampled.": "没有采样。",
    "Plan": "计划",
    "Prompt {number}, as the model gets it": "第 {number} 个提示，模型看到的样子",
    "Reading data and model configurations …": "读取数据和模型配置 …",
    "Sampling answers …": "采样回答 …",
    "System": "系统提示",
    "What was done is in {folder}: the same command goes on from there": "已完成的在 {folder}：同样的命令会接着做",
    "parameters": "个参数",
    "{name} answers": "{name} 回答",
    "{name} counts tokens: of answers from an endpoint it got one per character": (
        "{name} 按词元计数：来自接口的回答，每个字符算一个词元"
    ),
    "{prompts} prompts with {each} answers each: {answers}": "{prompts} 个提示，每个 {each} 个回答：{answers}",
    # A data sheet
    "Answers": "回答",
    "Judge": "评判",
    "Length": "长度",
    "Margin": "分差",
    "Model": "模型",
    "Orders": "顺序",
    "Pairs": "偏好对",
    "Prompts": "提示",
    "Refusal": "拒答",
    "Spent": "花费",
    "Ties": "平局",
    "Time": "用时",
    "Warning": "注意",
    ", ": "，",
    "{pairs}, of {prompts} prompts with {answers} answers": "{pairs} 对，来自 {prompts} 个提示的 {answers} 个回答",
    "left out: {reasons}": "没有用：{reasons}",
    "“{text}”": "“{text}”",
    "a pair's scores differ by {margin} at least": "一对的两个分数至少相差 {margin}",
    "from {low} to {high}, median {median}  {bars}": "从 {low} 到 {high}，中位数 {median}  {bars}",
    "chosen {chosen} characters, rejected {rejected}": "选中的 {chosen} 个字符，没选中的 {rejected} 个",
    "chosen {chosen} characters, rejected {rejected}; the chosen one is longer in {longer} "
    "[{longer_low} to {longer_high}]": (
        "选中的 {chosen} 个字符，没选中的 {rejected} 个；{longer} 的对里选中的更长 [{longer_low} 到 {longer_high}]"
    ),
    "{name}: chosen in {wins} of its pairs with others": "{name}：在和其他模型的对里，{wins} 被选中",
    "both agree in {share} of {count} comparisons": "{count} 次比较里，两种顺序 {share} 一致",
    # Why something is left out
    "no answer came": "个没有得到回答",
    "cut at the length limit": "个到长度上限被截断",
    "refuse to answer": "个是拒答",
    "empty": "个是空的",
    "with broken characters": "个含有损坏的字符",
    "the same as another answer to the prompt": "个和同一提示的另一个回答相同",
    "the judge failed on them": "个评判出错",
    "without a score": "个没有分数",
    "fewer than two answers that can be compared": "个提示可以比较的回答少于两个",
    "tied": "对打平",
    "nearly tied": "对几乎打平",
    "compared with each other, the two say otherwise": "对直接比较的结果不支持",
    "left out to balance the lengths": "对为平衡长度而去掉",
    # Warnings
    "very few pairs ({count}): a model would learn them by heart. {few} are few, {small} a beginning": (
        "只有 {count} 对，太少：模型会把它们背下来。{few} 对算少，{small} 对才够开始"
    ),
    "few pairs ({count}): enough for a first try": "{count} 对比较少：够第一次尝试",
    "the better answer is the {which} one in {share} of the pairs: a model may learn nothing but the length": (
        "{share} 的对里，较好的回答是{which}的那个：模型可能只学到长度"
    ),
    "longer": "较长",
    "shorter": "较短",
    "only {with} of {prompts} prompts give a pair: see what was left out": (
        "{prompts} 个提示里只有 {with} 个给出了偏好对：请看没有用的是什么"
    ),
    "the judge failed on {failed} of {answers} answers": "{answers} 个回答里，评判在 {failed} 个上出错",
    "both orders agree in {share} of the comparisons only: the judge often prefers a place, not an answer": (
        "只有 {share} 的比较里两种顺序一致：评判常常偏好位置，而不是回答"
    ),
    "{damaged} lines of samples.jsonl are damaged, and left out": "samples.jsonl 有 {damaged} 行损坏，没有用",
    "no pair is left, and nothing is written": "没有剩下偏好对，什么也没有写",
    ". What was sampled and judged is in {folder}: another --margin, or --all-pairs, goes on from there": (
        "。采样和评判的结果在 {folder} 里：换一个 --margin，或加上 --all-pairs，可以从那里继续"
    ),
}
