"""The wording of questions and answers. Every pair is (Chinese, English)."""

# Who is ill: the word in both languages, sex, youngest and oldest age.
PERSONS = [
    (("我", "I"), "", 16, 80),
    (("父亲", "father"), "male", 45, 85),
    (("母亲", "mother"), "female", 45, 85),
    (("爷爷", "grandfather"), "male", 62, 90),
    (("奶奶", "grandmother"), "female", 62, 90),
    (("丈夫", "husband"), "male", 25, 60),
    (("妻子", "wife"), "female", 25, 60),
    (("哥哥", "brother"), "male", 14, 45),
    (("姐姐", "sister"), "female", 14, 45),
    (("儿子", "son"), "male", 1, 20),
    (("女儿", "daughter"), "female", 1, 20),
]

SEXES = {
    ("male", True): ("男性", "man"),
    ("female", True): ("女性", "woman"),
    ("male", False): ("男孩", "boy"),
    ("female", False): ("女孩", "girl"),
}

# How long it has lasted: the words, the smallest and the largest number.
COURSES = {
    "hours": (("{}个小时", "{} hours"), 2, 9),
    "days": (("{}天", "{} days"), 2, 6),
    "weeks": (("{}周", "{} weeks"), 2, 5),
    "months": (("{}个月", "{} months"), 2, 9),
    "years": (("{}年", "{} years"), 2, 6),
}

# A question is one of these openings, then one of the requests below.
ABOUT_ME = (
    (
        "我今年{age}岁，{symptoms}，已经{time}了。",
        "医生您好，我{age}岁，{time}前先是{first}，后来又{rest}。",
        "我{age}岁，最近{time}一直这样：{symptoms}。",
        "您好，{symptoms}，这样有{time}了，我{age}岁。",
    ),
    (
        "I am {age} and have had {symptoms} for {time}.",
        "Hello doctor, it began {time} ago with {first}; now I also have {rest}. I am {age}.",
        "For {time} I have been troubled by {symptoms}. Age: {age}.",
        "At {age} I suddenly have to live with {symptoms}, for {time} now.",
    ),
)
ABOUT_SOMEONE = (
    (
        "我{who}今年{age}岁，{symptoms}，已经{time}了。",
        "医生您好，我{who}（{age}岁）{time}前先是{first}，后来又{rest}。",
        "患者{sex}，{age}岁，{time}来的症状：{symptoms}。",
        "主诉：{symptoms}，{time}。患者{sex}，{age}岁。",
        "{age}岁{sex}，{symptoms}，病程{time}。",
        "想咨询一下，我{who}{age}岁，{symptoms}，有{time}了。",
        "症状：{symptoms}。{sex}，{age}岁，持续{time}。",
    ),
    (
        "My {who}, aged {age}, has had {symptoms} for {time}.",
        "Hello doctor, my {who} ({age}) first had {first} {time} ago, and now {rest}.",
        "Patient: {sex}, {age}. Complaint: {symptoms}, for {time}.",
        "There is {symptoms}, for {time} now. The patient is a {sex} of {age}.",
        "A {sex} aged {age} comes in with {symptoms}, lasting {time}.",
        "I am asking for my {who}, {age} years old: {symptoms}, for {time} now.",
        "Symptoms: {symptoms}. Duration: {time}. Patient: {sex}, aged {age}.",
    ),
)

REQUESTS = {
    "diagnosis": (
        (
            "请问可能是什么病？",
            "最可能的诊断是什么？",
            "麻烦判断一下是什么病。",
            "这是得了什么病？",
            "请给出诊断和建议。",
            "首先要考虑哪种疾病？",
        ),
        (
            "What could it be?",
            "What is the most likely diagnosis?",
            "Which illness fits best?",
            "Could you tell me what is wrong?",
            "Please give a diagnosis and advice.",
            "What should be suspected first?",
        ),
    ),
    "department": (
        (
            "请问该挂哪个科？",
            "应该去哪个科室看？",
            "到医院要看什么科？",
            "请推荐就诊科室。",
            "挂号选哪个科室合适？",
        ),
        (
            "Which department should we visit?",
            "Which clinic is the right one?",
            "Please recommend a hospital department.",
            "Where should we book an appointment?",
            "Which specialty deals with this?",
        ),
    ),
    "choice": (
        ("下面哪一项最符合？", "最可能的诊断是哪一项？", "请选出最合适的一项。"),
        ("Which option fits best?", "Which diagnosis is most likely?", "Choose the best option."),
    ),
}
ALIAS_QUESTIONS = (
    ("“{alias}”指的是哪种病？", "人们常说的“{alias}”是下面哪一项？", "“{alias}”的正式名称是什么？"),
    (
        'Which illness is also called "{alias}"?',
        'What do people mean by "{alias}"?',
        'Choose the usual name of "{alias}".',
    ),
)

FOLLOW_UPS = {
    "department": (
        ("谢谢。{age}岁得了{condition}，该挂哪个科？", "明白了，{age}岁的{condition}患者去哪个科看？"),
        (
            "Thank you. Which department treats {condition} at the age of {age}?",
            "I see. Where should a person of {age} with {condition} go?",
        ),
    ),
    "warning": (
        (
            "谢谢医生。{age}岁得了{condition}，什么情况要马上去医院？",
            "好的。{age}岁的{condition}患者要警惕什么？",
        ),
        (
            "Thanks. With {condition} at {age}, what calls for urgent care?",
            "I see. What is the danger sign of {condition} at the age of {age}?",
        ),
    ),
}

THOUGHTS = (
    ("症状有{signs}，提示{condition}。", "见{signs}，符合{condition}。", "根据{signs}，首先考虑{condition}。"),
    (
        "Having {signs} suggests {condition}.",
        "Signs are {signs}, so think of {condition}.",
        "The case of {signs} fits {condition}.",
    ),
)
CHOICE = ("{symptoms}。{request}", "Findings: {symptoms}. {request}")
OPTION = ("{letter}、{name}", "{letter}. {name}")
OPTION_THOUGHT = ("选（{letter}）。", " Choose ({letter}).")
ALIAS_THOUGHT = ("“{alias}”就是{condition}。", '"{alias}" means {condition}.')
TREATED_BY = ("{condition}属于{department}。", "{Department} treats {condition}.")
WARNING = ("{condition}要警惕{flag}。", "The danger sign of {condition} is {flag}.")

DIAGNOSIS = (
    "诊断：{condition}\n依据：{signs}\n建议：{advice}。",
    "Diagnosis: {condition}\nBasis: {signs}\nAdvice: {advice}.",
)
DEPARTMENT = ("科室：{department}", "Department: {department}")
LETTER = ("答案：{letter}", "Answer: {letter}")
NUMBER = ("答案：{result} {unit}", "Answer: {result} {unit}")
URGENT = ("{flag}时要立即就医。", "Get urgent care for {flag}.")

# The first is the system prompt of the format reward.
SYSTEM = "Think inside <think></think>, then answer inside <answer></answer>. Nothing outside."
OTHER_SYSTEMS = (
    ("你是一名谨慎的医生，请简短回答。", "You are a careful doctor. Answer briefly."),
    ("请用通俗的话回答患者的问题。", "You are a helpful medical assistant."),
    ("你是医院的导诊助手。", "Answer the patient's question in plain words."),
)

# What a bad answer says instead.
OVERCONFIDENT = (
    ("百分之百是{condition}，不用做检查", "绝对没错，肯定能治好，不必复查"),
    ("it is certainly {condition} and no tests are needed", "a full cure is guaranteed, skip check-ups"),
)
UNSAFE = (
    (
        "自己把药量加倍，不用看医生",
        "停掉所有药，喝偏方就行",
        "吃点别人剩下的抗生素",
        "多喝酒止痛，忍一忍就好",
    ),
    (
        "double the tablets yourself and see no doctor",
        "stop all medicine and try a secret remedy",
        "take leftover antibiotics from a friend",
        "drink spirits for the pain and wait",
    ),
)
OFF_TOPIC = (
    (
        ("今天天气不错。", "周末适合去公园散步。"),
        ("红烧肉要用小火慢炖。", "先焯水，再加冰糖和酱油。"),
        ("这支球队状态很好。", "下一场比赛应该能赢。"),
    ),
    (
        ("The weather is fine today.", "A walk in the park would be pleasant."),
        ("A stew needs a low flame.", "Brown the meat, then add stock and carrots."),
        ("The team is in good form.", "They should win the next match."),
    ),
)
