"""The hand-written medical table from which all built-in data is generated.

It is there to make a tiny model worth training, not to advise anyone: real enough to read, small
enough to learn. To extend it, add a `Condition` and run `python -m scripts.make_builtin.build`. Two
conditions may share at most two symptoms, so that any three of them tell one condition from the
rest, and no name may contain another, so that a name found in an answer means that condition.
"""

from dataclasses import dataclass

Pair = tuple[str, str]  # (Chinese, English)

ZH, EN = 0, 1  # positions in a Pair

DEPARTMENTS: dict[str, Pair] = {
    "respiratory": ("呼吸内科", "respiratory medicine"),
    "heart": ("心内科", "cardiology"),
    "digestion": ("消化内科", "gastroenterology"),
    "nerves": ("神经内科", "neurology"),
    "hormones": ("内分泌科", "endocrinology"),
    "skin": ("皮肤科", "dermatology"),
    "ears": ("耳鼻喉科", "otolaryngology"),
    "eyes": ("眼科", "ophthalmology"),
    "bones": ("骨科", "orthopedics"),
    "urinary": ("泌尿外科", "urological surgery"),
    "kidneys": ("肾内科", "nephrology"),
    "women": ("妇科", "gynecology"),
    "children": ("儿科", "pediatrics"),
    "mind": ("精神心理科", "psychiatry"),
    "blood": ("血液科", "hematology"),
    "immunity": ("风湿免疫科", "rheumatology"),
    "infection": ("感染科", "infectious diseases"),
    "teeth": ("口腔科", "dentistry"),
    "surgery": ("普通外科", "general surgery"),
    "emergency": ("急诊科", "emergency medicine"),
}


@dataclass(frozen=True)
class Condition:
    """One row of the table; every Pair is (Chinese, English)."""

    name: Pair
    department: str  # key of DEPARTMENTS
    course: str  # how long it has lasted when people ask: hours, days, weeks, months or years
    signs: Pair  # 4 to 6 symptoms, separated by "、" in Chinese and ", " in English
    advice: Pair  # the first thing to do
    red_flag: Pair  # what calls for urgent care
    alias: Pair = ("", "")  # another name; empty where none is common
    ages: tuple[int, int] = (18, 75)
    sex: str = ""  # "male", "female", or "" for either

    def symptoms(self, language: int) -> list[str]:
        return self.signs[language].split(("、", ", ")[language])


CONDITIONS = [
    # respiratory medicine
    Condition(
        ("肺炎", "pneumonia"), "respiratory", "days",
        ("高热寒战、咳黄痰、深呼吸时胸痛、呼吸急促、胃口差",
         "high fever with chills, yellow phlegm, chest pain on deep breaths, fast breathing, "
         "poor appetite"),
        advice=("尽早就诊拍胸片，遵医嘱用药", "see a doctor soon for a chest X-ray"),
        red_flag=("嘴唇发紫", "blue lips"),
        alias=("肺部感染", "lung infection"),
    ),
    Condition(
        ("哮喘", "asthma"), "respiratory", "months",
        ("反复喘息、夜间咳嗽、胸闷、遇冷空气加重、呼气费力",
         "repeated wheezing, cough at night, chest tightness, attacks in cold air, "
         "trouble breathing out"),
        advice=("随身带吸入药，避开诱因", "carry an inhaler and avoid triggers"),
        red_flag=("喘得说不成句", "being too breathless to talk"),
        alias=("气喘病", ""),
    ),
    Condition(
        ("慢阻肺", "COPD"), "respiratory", "years",
        ("多年吸烟、长期咳痰、活动后气短、桶状胸、每到冬天加重",
         "many years of smoking, daily phlegm, breathlessness on effort, barrel chest, "
         "flare-ups every winter"),
        advice=("戒烟，做肺功能检查", "stop smoking and have a lung function test"),
        red_flag=("意识模糊", "confusion"),
        alias=("慢性阻塞性肺疾病", "chronic obstructive lung disease"), ages=(50, 80),
    ),
    Condition(
        ("感冒", "common cold"), "respiratory", "days",
        ("流鼻涕、打喷嚏、咽痒、低热、鼻塞",
         "runny nose, sneezing, scratchy throat, mild fever, blocked nose"),
        advice=("多休息，多喝水", "rest and drink plenty of water"),
        red_flag=("高热三天不退", "high fever for three days"),
        alias=("上呼吸道感染", "upper respiratory infection"), ages=(5, 75),
    ),
    # cardiology
    Condition(
        ("高血压", "hypertension"), "heart", "months",
        ("多次血压偏高、后脑胀痛、头晕、耳鸣、面部发红",
         "repeated high readings at home, ache at the back of the head, dizziness, "
         "ringing ears, flushed face"),
        advice=("少吃盐，每天量血压", "eat less salt and check blood pressure daily"),
        red_flag=("剧烈头痛伴视物模糊", "severe headache with blurred vision"),
        alias=("血压高", "high blood pressure"), ages=(40, 80),
    ),
    Condition(
        ("心绞痛", "angina"), "heart", "weeks",
        ("劳累后胸口压榨痛、休息几分钟缓解、疼痛传到左肩、爬楼时发作、胸口发闷",
         "squeezing chest pain on effort, relief after a short rest, pain spreading to the left shoulder, "
         "attacks on climbing stairs, heavy feeling in the chest"),
        advice=("停止活动，尽快查心电图", "stop the activity and have an ECG soon"),
        red_flag=("胸痛超过15分钟", "chest pain over 15 minutes"),
        ages=(45, 80),
    ),
    Condition(
        ("房颤", "atrial fibrillation"), "heart", "weeks",
        ("心跳不齐、阵阵心慌、脉搏快慢不一、容易疲劳、走路耐力下降",
         "irregular heartbeat, bouts of palpitations, uneven pulse, easy tiredness, "
         "less stamina on walks"),
        advice=("做心电图，咨询抗凝治疗", "have an ECG and ask about blood thinners"),
        red_flag=("突然晕倒", "sudden fainting"),
        alias=("心房颤动", "AFib"), ages=(50, 85),
    ),
    Condition(
        ("心力衰竭", "heart failure"), "heart", "weeks",
        ("平躺时气短、双脚浮肿、夜间憋醒、体重快速增加、活动后气短",
         "breathlessness when lying flat, swollen feet, waking up gasping, rapid weight gain, "
         "breathlessness on effort"),
        advice=("限盐限水，尽快就诊", "limit salt and see a doctor promptly"),
        red_flag=("咳粉红色泡沫痰", "pink frothy sputum"),
        alias=("心衰", "cardiac insufficiency"), ages=(50, 85),
    ),
    # gastroenterology
    Condition(
        ("胃食管反流", "acid reflux"), "digestion", "weeks",
        ("烧心、反酸、躺下加重、饭后嗳气、咽部异物感",
         "heartburn, sour taste in the mouth, discomfort on lying down, belching after meals, "
         "lump in the throat"),
        advice=("少食多餐，睡前三小时不进食", "eat small meals and nothing late at night"),
        red_flag=("吞咽困难", "trouble swallowing"),
        alias=("反流性食管炎", "GERD"),
    ),
    Condition(
        ("胃溃疡", "stomach ulcer"), "digestion", "weeks",
        ("饭后上腹痛、黑便、常吃止痛药、上腹压痛、体重下降",
         "upper belly pain after meals, black stools, frequent use of painkillers, "
         "tender upper belly, weight loss"),
        advice=("尽快做胃镜，少用止痛药", "have a gastroscopy and avoid painkillers"),
        red_flag=("呕血", "vomiting blood"),
        alias=("", "gastric ulcer"),
    ),
    Condition(
        ("肠胃炎", "gastroenteritis"), "digestion", "days",
        ("水样腹泻、呕吐、腹部绞痛、吃过不洁食物、口干",
         "watery diarrhea, vomiting, belly cramps, a recent unclean meal, dry mouth"),
        advice=("少量多次补液，清淡饮食", "take small sips of rehydration fluid"),
        red_flag=("几乎无尿", "passing almost no urine"),
        alias=("胃肠型感冒", "stomach flu"), ages=(5, 75),
    ),
    Condition(
        ("肠易激综合征", "irritable bowel syndrome"), "digestion", "months",
        ("便后腹痛缓解、腹泻便秘交替、腹胀、紧张时腹痛、大便带黏液",
         "belly pain eased by a stool, diarrhea and constipation in turn, bloating, belly pain under stress, "
         "mucus in the stool"),
        advice=("规律饮食，学会减压", "eat regularly and learn to relax"),
        red_flag=("便血", "blood in the stool"),
        alias=("", "spastic colon"), ages=(18, 55),
    ),
    Condition(
        ("脂肪肝", "fatty liver"), "digestion", "months",
        ("转氨酶偏高、肥胖、右上腹不适、经常饮酒、超声示肝脏发亮",
         "raised liver enzymes, obesity, discomfort under the right ribs, frequent drinking, "
         "bright liver on ultrasound"),
        advice=("戒酒减重，定期复查肝功能", "stop alcohol and lose weight slowly"),
        red_flag=("眼白发黄", "yellow eyes"),
        alias=("", "hepatic steatosis"), ages=(25, 65),
    ),
    # neurology
    Condition(
        ("偏头痛", "migraine"), "nerves", "hours",
        ("一侧跳痛、怕光、恶心、眼前闪光、怕吵",
         "throbbing pain on one side of the head, dislike of light, nausea, flashing lights, "
         "dislike of noise"),
        advice=("到安静暗处休息，及早服药", "rest in a dark room and treat it early"),
        red_flag=("一生中最剧烈的头痛", "the worst headache ever"),
        alias=("血管性头痛", "sick headache"), ages=(16, 55),
    ),
    Condition(
        ("癫痫", "epilepsy"), "nerves", "months",
        ("突然抽搐、口吐白沫、发作后昏睡、事后想不起来、双眼上翻",
         "sudden convulsions, foam at the mouth, deep sleep after attacks, no memory of attacks, "
         "eyes rolling upward"),
        advice=("发作时侧卧防受伤，查脑电图", "lie on the side in an attack and have an EEG"),
        red_flag=("抽搐超过五分钟", "a fit over five minutes"),
        alias=("羊角风", "seizure disorder"), ages=(10, 60),
    ),
    Condition(
        ("帕金森病", "Parkinson's disease"), "nerves", "years",
        ("静止时手抖、动作缓慢、走小碎步、肌肉僵硬、表情减少",
         "hand tremor at rest, slow movements, shuffling walk, rigid muscles, mask-like face"),
        advice=("到医院评估用药，防跌倒", "see a specialist and prevent falls"),
        red_flag=("反复跌倒", "repeated falls"),
        alias=("震颤麻痹", "shaking palsy"), ages=(55, 85),
    ),
    Condition(
        ("阿尔茨海默病", "Alzheimer's disease"), "nerves", "years",
        ("忘记刚发生的事、反复问同一问题、在熟悉的路上迷路、性格改变、算账出错",
         "forgetting recent events, asking the same question again, getting lost on familiar roads, "
         "change of character, mistakes with money"),
        advice=("做记忆评估，家人多陪护", "have a memory test and keep family close"),
        red_flag=("走失", "wandering off"),
        alias=("老年痴呆", "senile dementia"), ages=(62, 88),
    ),
    Condition(
        ("面神经炎", "Bell's palsy"), "nerves", "days",
        ("一侧眼睛闭不拢、额纹消失、喝水漏水、耳后疼痛、味觉减退",
         "one eye that will not close, smooth forehead on one side, water leaking from the mouth, "
         "pain behind the ear, dull taste"),
        advice=("三天内就诊，保护眼睛", "see a doctor within three days and protect the eye"),
        red_flag=("手脚无力", "weak arms or legs"),
        alias=("面瘫", "facial palsy"),
    ),
    Condition(
        ("三叉神经痛", "trigeminal neuralgia"), "nerves", "weeks",
        ("一侧面部电击样痛、刷牙诱发疼痛、每次数秒、不敢洗脸、间歇期完全正常",
         "electric shocks in one cheek, pain set off by brushing teeth, attacks of a few seconds, "
         "fear of washing the face, no pain in between"),
        advice=("避免触碰痛点，到医院用药", "avoid touching the spot and ask for medicine"),
        red_flag=("面部持续麻木", "lasting numbness of the face"),
        ages=(40, 75),
    ),
    # endocrinology
    Condition(
        ("糖尿病", "diabetes"), "hormones", "months",
        ("口渴多饮、尿量增多、容易饥饿、体重下降、伤口难愈合",
         "constant thirst, passing much urine, constant hunger, weight loss, wounds slow to heal"),
        advice=("查空腹血糖，控制饮食", "check fasting glucose and watch the diet"),
        red_flag=("呼气有烂苹果味", "fruity breath"),
        alias=("消渴症", "high blood sugar"), ages=(30, 80),
    ),
    Condition(
        ("甲亢", "hyperthyroidism"), "hormones", "months",
        ("怕热多汗、手抖、吃得多却消瘦、眼球突出、脾气急躁",
         "dislike of heat, shaky hands, weight loss despite eating well, bulging eyes, "
         "short temper"),
        advice=("查甲状腺功能，少吃海带", "test the thyroid and avoid iodine"),
        red_flag=("高热伴心跳极快", "fever with a racing heart"),
        alias=("甲状腺功能亢进", "overactive thyroid"), ages=(20, 60),
    ),
    Condition(
        ("甲减", "hypothyroidism"), "hormones", "months",
        ("怕冷、皮肤干燥、便秘、嗜睡、面部虚肿",
         "feeling cold, dry skin, constipation, sleepiness, puffy face"),
        advice=("查甲状腺功能，按时服药", "test the thyroid and take tablets on time"),
        red_flag=("体温过低", "very low body temperature"),
        alias=("甲状腺功能减退", "underactive thyroid"), ages=(25, 70),
    ),
    Condition(
        ("低血糖", "hypoglycemia"), "hormones", "hours",
        ("饥饿时手抖、出冷汗、吃糖后好转、眼前发黑、打胰岛素后发作",
         "shaking when hungry, cold sweat, relief after sugar, blackouts before the eyes, "
         "onset after insulin"),
        advice=("马上吃糖，15分钟后复测", "take sugar now and test again in 15 minutes"),
        red_flag=("叫不醒", "being hard to wake"),
        alias=("血糖过低", "low blood sugar"),
    ),
    # dermatology
    Condition(
        ("湿疹", "eczema"), "skin", "weeks",
        ("肘窝红斑、皮肤渗液、剧烈瘙痒、皮肤增厚、两侧对称皮疹",
         "red patches in the elbow folds, oozing skin, intense itch, thickened skin, "
         "rash on both sides"),
        advice=("多涂润肤霜，不要抓", "use moisturizer and do not scratch"),
        red_flag=("皮肤化脓伴发热", "pus with fever"),
        alias=("特应性皮炎", "atopic dermatitis"), ages=(2, 60),
    ),
    Condition(
        ("荨麻疹", "hives"), "skin", "days",
        ("皮肤起风团、一天内自行消退、划痕处隆起、吃海鲜后发作、剧烈瘙痒",
         "raised welts, spots gone within a day, lines rising after scratching, onset after seafood, "
         "intense itch"),
        advice=("避开过敏原，服抗过敏药", "avoid the allergen and take an antihistamine"),
        red_flag=("喉咙发紧", "tight throat"),
        alias=("风疹块", "urticaria"), ages=(5, 65),
    ),
    Condition(
        ("带状疱疹", "shingles"), "skin", "days",
        ("单侧成串水疱、皮肤灼痛、先痛后起疹、衣服碰到就痛、近期过度劳累",
         "band of blisters on one side, burning skin pain, pain before the rash, pain at the touch of clothes, "
         "recent exhaustion"),
        advice=("三天内就诊，用抗病毒药", "get antivirals within three days"),
        red_flag=("水疱长到眼周", "blisters near the eye"),
        alias=("缠腰龙", "herpes zoster"), ages=(40, 80),
    ),
    Condition(
        ("银屑病", "psoriasis"), "skin", "months",
        ("银白色鳞屑、边界清楚的红斑、刮后点状出血、头皮脱屑、指甲有小坑",
         "silvery scales, sharply edged red plaques, pinpoint bleeding on scraping, "
         "flaky scalp, pitted nails"),
        advice=("保湿，遵医嘱外用药", "moisturize and use ointment as prescribed"),
        red_flag=("全身皮肤发红", "redness of the whole body"),
        alias=("牛皮癣", ""),
    ),
    Condition(
        ("痤疮", "acne"), "skin", "months",
        ("面部粉刺、皮肤油腻、红色小疙瘩、背部脓疱、熬夜后加重",
         "blackheads on the face, oily skin, red pimples, pustules on the back, "
         "flare-ups after late nights"),
        advice=("温和洁面，不要挤", "wash gently and do not squeeze"),
        red_flag=("深部肿块剧痛", "deep painful lumps"),
        alias=("青春痘", ""), ages=(13, 28),
    ),
    Condition(
        ("足癣", "athlete's foot"), "skin", "weeks",
        ("脚趾间脱皮、脚痒、脚底小水疱、脚臭、常穿闷热的鞋",
         "peeling between the toes, itchy feet, small blisters on the soles, smelly feet, "
         "hot tight shoes"),
        advice=("保持脚干燥，用抗真菌药膏", "keep feet dry and use antifungal cream"),
        red_flag=("小腿红肿发热", "a red hot swollen leg"),
        alias=("脚气", "tinea pedis"), ages=(16, 65),
    ),
    # otolaryngology
    Condition(
        ("过敏性鼻炎", "allergic rhinitis"), "ears", "weeks",
        ("清水样鼻涕、一连串喷嚏、鼻痒、花粉季加重、眼痒",
         "clear watery nasal drip, fits of sneezing, itchy nose, flare-ups in pollen season, "
         "itchy eyes"),
        advice=("避开花粉，冲洗鼻腔", "avoid pollen and rinse the nose"),
        red_flag=("喘息", "wheezing"),
        alias=("花粉症", "hay fever"), ages=(6, 60),
    ),
    Condition(
        ("中耳炎", "middle ear infection"), "ears", "days",
        ("耳朵痛、耳道流脓、听声音发闷、鼻塞后发病、睡觉时抓耳",
         "ear pain, pus from the ear, muffled hearing, onset after a stuffy nose, "
         "ear tugging in sleep"),
        advice=("保持耳道干燥，尽早就诊", "keep the ear dry and see a doctor"),
        red_flag=("耳后红肿", "swelling behind the ear"),
        alias=("", "otitis media"), ages=(3, 60),
    ),
    Condition(
        ("鼻窦炎", "sinusitis"), "ears", "weeks",
        ("黄脓鼻涕、面颊胀痛、嗅觉减退、低头时头痛、鼻塞",
         "thick yellow nasal drip, pressure in the cheeks, poor sense of smell, headache on bending forward, "
         "blocked nose"),
        advice=("冲洗鼻腔，按疗程用药", "rinse the nose and finish the medicine"),
        red_flag=("眼眶红肿", "swelling around the eye"),
        alias=("", "sinus infection"), ages=(10, 65),
    ),
    Condition(
        ("扁桃体炎", "tonsillitis"), "ears", "days",
        ("咽喉剧痛、吞咽疼痛、咽部有白点、颈部淋巴结肿大、发热",
         "severe sore throat, painful swallowing, white spots in the throat, "
         "swollen neck glands, fever"),
        advice=("多喝温水，就诊查血常规", "drink warm fluids and have a blood count"),
        red_flag=("张口困难", "being unable to open the mouth"),
        alias=("乳蛾", ""), ages=(5, 45),
    ),
    Condition(
        ("梅尼埃病", "Meniere's disease"), "ears", "months",
        ("天旋地转、耳鸣、听力时好时坏、耳内胀满、眩晕时呕吐",
         "room spinning around, ringing ears, hearing that comes and goes, full feeling in the ear, "
         "vomiting in attacks"),
        advice=("发作时平卧，低盐饮食", "lie down in attacks and eat less salt"),
        red_flag=("突然听不见", "sudden hearing loss"),
        alias=("内耳积水", "inner ear hydrops"), ages=(30, 65),
    ),
    # ophthalmology
    Condition(
        ("结膜炎", "conjunctivitis"), "eyes", "days",
        ("眼睛发红、眼屎增多、流泪、早晨睁不开眼、眼内沙粒感",
         "red eyes, sticky eye discharge, watery eyes, eyelids stuck in the morning, "
         "sandy feeling in the eyes"),
        advice=("勤洗手，不揉眼，不共用毛巾", "wash hands and do not share towels"),
        red_flag=("视力突然下降", "sudden loss of sight"),
        alias=("红眼病", "pink eye"), ages=(4, 65),
    ),
    Condition(
        ("白内障", "cataract"), "eyes", "years",
        ("看东西像隔着雾、夜间怕眩光、瞳孔发白、颜色变淡、老花镜度数常换",
         "misty sight, glare at night, whitish pupil, faded colors, frequent changes of glasses"),
        advice=("到医院评估是否手术", "ask whether surgery would help"),
        red_flag=("眼睛突然剧痛", "sudden severe eye pain"),
        alias=("", "clouded lens"), ages=(55, 88),
    ),
    Condition(
        ("青光眼", "glaucoma"), "eyes", "days",
        ("眼球胀痛、看灯有彩圈、视野变窄、眼压升高、同侧头痛",
         "aching eyeball, halos around lamps, narrow field of view, raised eye pressure, "
         "headache on that side"),
        advice=("当天就诊测眼压", "have the eye pressure measured today"),
        red_flag=("视力急剧下降", "rapid loss of sight"),
        ages=(45, 80),
    ),
    Condition(
        ("干眼症", "dry eye disease"), "eyes", "weeks",
        ("眼睛干涩、久看屏幕后加重、眼睛疲劳、频繁眨眼、戴隐形眼镜不适",
         "dryness in the eyes, discomfort after screen use, tired eyes, frequent blinking, "
         "trouble with contact lenses"),
        advice=("少看屏幕，用人工泪液", "rest from screens and use artificial tears"),
        red_flag=("持续眼痛", "lasting eye pain"),
        ages=(18, 60),
    ),
    # orthopedics
    Condition(
        ("腰椎间盘突出", "herniated disc"), "bones", "weeks",
        ("腰痛、疼痛窜到一侧腿、咳嗽时腰更痛、脚麻、弯腰困难",
         "low back pain, pain shooting down one leg, back pain on coughing, numb foot, "
         "trouble bending"),
        advice=("避免久坐搬重物，适当休息", "avoid long sitting and heavy lifting"),
        red_flag=("大小便失控", "loss of bladder control"),
        alias=("腰突症", "slipped disc"), ages=(25, 65),
    ),
    Condition(
        ("颈椎病", "cervical spondylosis"), "bones", "months",
        ("脖子僵硬、手指发麻、低头久了加重、肩背酸痛、转头时头晕",
         "stiff neck, numb fingers, pain after looking down, aching shoulders, "
         "dizziness on turning the head"),
        advice=("少低头，做颈部锻炼", "keep the head up and exercise the neck"),
        red_flag=("走路像踩棉花", "unsteady walking"),
        alias=("", "neck arthritis"), ages=(25, 70),
    ),
    Condition(
        ("骨质疏松", "osteoporosis"), "bones", "years",
        ("身高变矮、驼背、轻轻一摔就骨折、全身骨头酸痛、很少晒太阳",
         "loss of height, stooped back, fracture after a minor fall, aching bones, "
         "little sunlight"),
        advice=("补钙和维生素D，防跌倒", "take calcium and prevent falls"),
        red_flag=("突发腰背剧痛", "sudden severe back pain"),
        alias=("", "brittle bones"), ages=(58, 88),
    ),
    Condition(
        ("肩周炎", "frozen shoulder"), "bones", "months",
        ("肩膀抬不高、夜间肩痛、梳头困难、穿衣费力、胳膊难以后伸",
         "arm that cannot be raised, shoulder pain at night, trouble combing hair, trouble dressing, "
         "trouble reaching behind"),
        advice=("热敷，循序渐进活动肩膀", "use warmth and gentle exercises"),
        red_flag=("外伤后完全不能动", "no movement after an injury"),
        alias=("五十肩", "adhesive capsulitis"), ages=(42, 68),
    ),
    Condition(
        ("踝关节扭伤", "ankle sprain"), "bones", "hours",
        ("崴脚后疼痛、脚踝肿胀、走路一瘸一拐、脚踝青紫、不敢着地",
         "pain after twisting a foot, swollen ankle, limping, bruised ankle, "
         "fear of stepping down"),
        advice=("停止走动，冰敷并抬高", "rest, use ice and raise the foot"),
        red_flag=("脚踝变形", "a deformed ankle"),
        alias=("崴脚", "twisted ankle"), ages=(10, 55),
    ),
    Condition(
        ("膝骨关节炎", "knee osteoarthritis"), "bones", "years",
        ("上下楼膝盖痛、膝盖有响声、久坐后膝盖发僵、膝盖变形、下蹲困难",
         "knee pain on stairs, creaking knees, stiff knees after sitting, deformed knees, "
         "trouble squatting"),
        advice=("减重，少爬楼，多游泳", "lose weight and swim instead of climbing"),
        red_flag=("膝盖红肿发热", "a hot red knee"),
        alias=("老寒腿", "wear-and-tear arthritis"), ages=(50, 80),
    ),
    # urological surgery
    Condition(
        ("尿路感染", "urinary tract infection"), "urinary", "days",
        ("尿频、尿急、小便刺痛、小腹坠胀、尿液浑浊",
         "frequent urination, sudden urge to urinate, burning urination, lower belly pressure, "
         "cloudy urine"),
        advice=("多喝水，查尿常规", "drink water and have a urine test"),
        red_flag=("腰痛伴高热", "back pain with high fever"),
        alias=("泌尿道感染", "UTI"),
    ),
    Condition(
        ("肾结石", "kidney stone"), "urinary", "hours",
        ("一侧腰部绞痛、血尿、疼痛传到大腿根、痛得坐立不安、平时喝水很少",
         "cramps in one flank, blood in the urine, pain spreading to the groin, restlessness from pain, "
         "drinking little water"),
        advice=("就诊做超声，多喝水", "have an ultrasound and drink more water"),
        red_flag=("疼痛伴发热寒战", "pain with fever and chills"),
        alias=("", "renal calculus"), ages=(22, 65),
    ),
    Condition(
        ("前列腺增生", "enlarged prostate"), "urinary", "years",
        ("夜里多次起来小便、排尿费力、尿线变细、总觉得尿不净、尿后滴沥",
         "getting up at night to urinate, straining to urinate, weak stream, feeling of incomplete emptying, "
         "dribbling afterwards"),
        advice=("睡前少喝水，到医院查前列腺", "drink less at night and have a check-up"),
        red_flag=("完全尿不出", "being unable to urinate"),
        alias=("前列腺肥大", "BPH"), ages=(52, 85), sex="male",
    ),
    # nephrology
    Condition(
        ("肾小球肾炎", "glomerulonephritis"), "kidneys", "weeks",
        ("尿中泡沫多、早晨眼皮肿、茶色尿、血压升高、咽炎后发病",
         "foamy urine, puffy eyelids in the morning, tea-colored urine, raised blood pressure, "
         "onset after a sore throat"),
        advice=("少盐饮食，查尿常规", "eat less salt and have a urine test"),
        red_flag=("尿量明显减少", "much less urine"),
        alias=("肾炎", "nephritis"), ages=(8, 55),
    ),
    Condition(
        ("慢性肾病", "chronic kidney disease"), "kidneys", "years",
        ("肌酐升高、长期疲乏、皮肤发痒、小腿抽筋、脸色灰暗",
         "raised creatinine, lasting fatigue, itchy skin, leg cramps, sallow face"),
        advice=("控制血压，低蛋白饮食", "control blood pressure and limit protein"),
        red_flag=("呼吸困难伴浮肿", "breathlessness with swelling"),
        alias=("慢性肾衰", "chronic renal failure"), ages=(40, 80),
    ),
    # gynecology
    Condition(
        ("阴道炎", "vaginitis"), "women", "days",
        ("白带增多、外阴瘙痒、分泌物有异味、外阴灼热、白带呈豆渣样",
         "more vaginal discharge, intimate itching, unusual odor, intimate burning, "
         "curd-like discharge"),
        advice=("做白带检查，不自行冲洗", "have a swab test and avoid douching"),
        red_flag=("下腹痛伴发热", "lower belly pain with fever"),
        ages=(20, 55), sex="female",
    ),
    Condition(
        ("子宫内膜异位症", "endometriosis"), "women", "years",
        ("痛经逐年加重、月经量多、经期排便疼痛、一直未能怀孕、盆腔隐痛",
         "period pain worse each year, heavy periods, painful stools during periods, "
         "trouble getting pregnant, dull pelvic pain"),
        advice=("做妇科超声，与医生商量治疗", "have an ultrasound and discuss treatment"),
        red_flag=("突发剧烈腹痛", "sudden severe belly pain"),
        ages=(22, 45), sex="female",
    ),
    Condition(
        ("多囊卵巢综合征", "polycystic ovary syndrome"), "women", "months",
        ("几个月才来一次月经、体毛增多、脸上长痘、体重增加、脖子皮肤发黑",
         "months between periods, excess body hair, spots on the face, weight gain, "
         "dark skin on the neck"),
        advice=("控制体重，查性激素", "manage weight and test hormones"),
        red_flag=("大量出血", "very heavy bleeding"),
        alias=("", "PCOS"), ages=(18, 38), sex="female",
    ),
    Condition(
        ("更年期综合征", "menopausal syndrome"), "women", "months",
        ("阵阵潮热、夜间盗汗、月经紊乱、情绪波动、入睡困难",
         "hot flushes, night sweats, irregular periods, mood swings, trouble falling asleep"),
        advice=("规律运动，必要时咨询激素治疗", "exercise and ask about hormone therapy"),
        red_flag=("绝经后又出血", "bleeding after menopause"),
        alias=("围绝经期综合征", "the change of life"), ages=(45, 56), sex="female",
    ),
    # pediatrics
    Condition(
        ("手足口病", "hand-foot-mouth disease"), "children", "days",
        ("手脚起疹、口腔疼痛、屁股上有红疹、流口水、不肯吃饭",
         "rash on hands and feet, sore mouth, red spots on the bottom, drooling, refusing food"),
        advice=("居家隔离，吃温凉软食", "stay home and offer cool soft food"),
        red_flag=("惊跳抽搐", "jerking or fits"),
        alias=("", "HFMD"), ages=(1, 6),
    ),
    Condition(
        ("水痘", "chickenpox"), "children", "days",
        ("全身水疱、皮疹分批出现、头皮水疱、疹子发痒结痂、发热",
         "blisters all over the body, rash in waves, blisters on the scalp, itchy scabs, fever"),
        advice=("隔离到全部结痂，剪短指甲", "stay home until all spots crust"),
        red_flag=("精神萎靡", "unusual drowsiness"),
        alias=("", "varicella"), ages=(2, 10),
    ),
    Condition(
        ("热性惊厥", "febrile seizure"), "children", "hours",
        ("高热时抽搐、几分钟后自行停止、两眼发直、牙关紧闭、之后神志清楚",
         "convulsions in high fever, fit ending in minutes, staring eyes, clenched teeth, "
         "alert afterwards"),
        advice=("侧卧防窒息，马上就医", "lay the child on the side and get help"),
        red_flag=("抽搐超过五分钟", "a fit over five minutes"),
        alias=("高热抽风", "fever fit"), ages=(1, 5),
    ),
    Condition(
        ("佝偻病", "rickets"), "children", "months",
        ("夜里哭闹多汗、罗圈腿、出牙晚、头型方大、很少晒太阳",
         "sweaty restless sleep, bow legs, late teething, square head, little sunlight"),
        advice=("补充维生素D，多晒太阳", "give vitamin D and more sunlight"),
        red_flag=("手足抽搐", "spasms of hands and feet"),
        alias=("维生素D缺乏病", "vitamin D deficiency"), ages=(1, 3),
    ),
    Condition(
        ("猩红热", "scarlet fever"), "children", "days",
        ("舌头像草莓、皮疹像砂纸、嘴唇周围苍白、咽喉剧痛、指尖脱皮",
         "strawberry tongue, sandpaper rash, pale ring around the mouth, severe sore throat, "
         "peeling fingertips"),
        advice=("隔离就诊，用足抗生素", "see a doctor and finish the antibiotics"),
        red_flag=("浮肿、茶色尿", "swelling or dark urine"),
        alias=("烂喉痧", "scarlatina"), ages=(3, 12),
    ),
    Condition(
        ("腮腺炎", "mumps"), "children", "days",
        ("耳下肿胀、嚼东西疼、吃酸的更痛、同班有人得病、发热",
         "swelling below the ears, pain on chewing, pain with sour food, sick classmates, fever"),
        advice=("隔离休息，吃软食", "stay home, rest and eat soft food"),
        red_flag=("睾丸或腹部疼痛", "testicle or belly pain"),
        alias=("痄腮", "parotitis"), ages=(4, 12),
    ),
    # psychiatry
    Condition(
        ("抑郁症", "depression"), "mind", "months",
        ("情绪低落、对什么都没兴趣、早醒、总是自责、没有力气做事",
         "low mood, loss of interest, early waking, constant self-blame, no energy for tasks"),
        advice=("尽快求助专业医生，家人多陪伴", "seek professional help and stay with family"),
        red_flag=("有轻生念头", "thoughts of suicide"),
        ages=(16, 65),
    ),
    Condition(
        ("焦虑症", "anxiety disorder"), "mind", "months",
        ("过度担心、心神不宁、肌肉紧绷、注意力不集中、入睡困难",
         "constant worry, inner unrest, tense muscles, poor concentration, trouble falling asleep"),
        advice=("放松训练，心理咨询", "learn to relax and see a counselor"),
        red_flag=("无法正常生活", "being unable to cope"),
        ages=(18, 60),
    ),
    Condition(
        ("惊恐障碍", "panic disorder"), "mind", "weeks",
        ("突发强烈恐惧、心脏狂跳、害怕失控、检查都正常、十几分钟自行平息",
         "sudden intense fear, pounding heart, fear of losing control, normal test results, "
         "attacks fading in minutes"),
        advice=("缓慢呼吸，看心理门诊", "breathe slowly and see a therapist"),
        red_flag=("胸痛不缓解", "chest pain that does not ease"),
        alias=("急性焦虑发作", "panic attacks"), ages=(18, 50),
    ),
    Condition(
        ("失眠症", "insomnia"), "mind", "weeks",
        ("躺下很久睡不着、夜里多次醒来、白天没精神、醒后难再睡、靠咖啡提神",
         "lying awake for hours, waking many times, daytime tiredness, no sleep after waking, "
         "reliance on coffee"),
        advice=("固定作息，睡前不看手机", "keep fixed hours and no phone in bed"),
        red_flag=("白天开车打瞌睡", "dozing off while driving"),
        alias=("", "sleeplessness"),
    ),
    # hematology
    Condition(
        ("缺铁性贫血", "iron deficiency anemia"), "blood", "months",
        ("面色苍白、指甲变脆、爱嚼冰块、蹲起时头昏、头发干枯",
         "pale face, brittle nails, craving for ice, faintness on standing up, dry hair"),
        advice=("查血常规，多吃红肉", "have a blood count and eat red meat"),
        red_flag=("静息时心慌气短", "breathlessness at rest"),
        ages=(16, 55),
    ),
    Condition(
        ("白血病", "leukemia"), "blood", "weeks",
        ("牙龈出血、皮肤瘀斑、持续低烧、骨头疼、反复感染",
         "bleeding gums, unexplained bruises, lasting low fever, bone pain, repeated infections"),
        advice=("尽快查血常规和骨髓", "have blood and marrow tests soon"),
        red_flag=("出血不止", "bleeding that does not stop"),
        alias=("血癌", "blood cancer"), ages=(6, 70),
    ),
    Condition(
        ("血友病", "hemophilia"), "blood", "years",
        ("自幼容易出血、膝盖反复肿痛积血、拔牙后出血很久、舅舅有同样的病、轻碰就起血肿",
         "easy bleeding since childhood, knees swollen with blood, long bleeding after a tooth pull, "
         "an uncle with the same illness, large bruises from light bumps"),
        advice=("避免碰撞，备凝血因子", "avoid injury and keep clotting factor ready"),
        red_flag=("头部受伤", "any head injury"),
        ages=(5, 40), sex="male",
    ),
    # rheumatology
    Condition(
        ("类风湿关节炎", "rheumatoid arthritis"), "immunity", "months",
        ("晨僵超过一小时、双手指关节肿痛、手指变形、握拳困难、类风湿因子升高",
         "morning stiffness over an hour, swollen finger joints on both hands, bent fingers, "
         "trouble making a fist, raised rheumatoid factor"),
        advice=("尽早规范用药，保护关节", "start treatment early and protect the joints"),
        red_flag=("发热伴气短", "fever with breathlessness"),
        ages=(30, 70),
    ),
    Condition(
        ("痛风", "gout"), "immunity", "days",
        ("大脚趾剧痛、关节红肿发热、半夜突然发作、喝啤酒后发作、尿酸升高",
         "severe pain in the big toe, hot red joint, sudden onset at midnight, "
         "onset after beer, high uric acid"),
        advice=("多喝水，不喝酒，少吃海鲜", "drink water and avoid beer and seafood"),
        red_flag=("关节剧痛伴高热", "joint pain with high fever"),
        alias=("尿酸性关节炎", "uric acid arthritis"), ages=(30, 75), sex="male",
    ),
    Condition(
        ("红斑狼疮", "lupus"), "immunity", "months",
        ("脸上蝶形红斑、晒太阳后皮疹加重、掉头发、口腔反复溃烂、多处关节痛",
         "butterfly rash on the face, rash after sunlight, hair loss, repeated mouth sores, "
         "pain in many joints"),
        advice=("避免日晒，尽早专科治疗", "avoid sun and see a specialist early"),
        red_flag=("浮肿少尿", "swelling with little urine"),
        alias=("", "SLE"), ages=(16, 45), sex="female",
    ),
    Condition(
        ("强直性脊柱炎", "ankylosing spondylitis"), "immunity", "months",
        ("早起腰背发僵、活动后腰痛减轻、夜里腰痛醒、臀部交替疼、HLA-B27阳性",
         "stiff back in the morning, back pain easing with exercise, back pain waking at night, "
         "buttock pain changing sides, positive HLA-B27 test"),
        advice=("坚持伸展锻炼，定期复查", "stretch daily and have regular checks"),
        red_flag=("眼睛红痛", "a red painful eye"),
        ages=(16, 40), sex="male",
    ),
    # infectious diseases
    Condition(
        ("流感", "influenza"), "infection", "days",
        ("突然高烧、全身酸痛、头痛、极度疲倦、身边有人同样发病",
         "sudden high fever, body aches, headache, extreme tiredness, sick people nearby"),
        advice=("两天内用抗病毒药，居家休息", "take antivirals early and stay home"),
        red_flag=("呼吸困难", "trouble breathing"),
        alias=("流行性感冒", "the flu"), ages=(6, 75),
    ),
    Condition(
        ("肺结核", "tuberculosis"), "infection", "weeks",
        ("午后低热、夜间盗汗、痰中带血、咳嗽超过两周、体重下降",
         "low fever in the afternoon, night sweats, blood in the phlegm, "
         "cough for over two weeks, weight loss"),
        advice=("戴口罩，查痰和胸片", "wear a mask and have a sputum test"),
        red_flag=("大口咯血", "coughing up much blood"),
        alias=("痨病", "TB"), ages=(16, 75),
    ),
    Condition(
        ("乙型肝炎", "hepatitis B"), "infection", "weeks",
        ("皮肤眼睛发黄、尿色像浓茶、厌油腻、表面抗原阳性、浑身没劲",
         "yellow skin and eyes, dark urine, disgust at greasy food, positive surface antigen, "
         "weakness all over"),
        advice=("查肝功能，不喝酒", "test the liver and avoid alcohol"),
        red_flag=("神志改变", "changes in alertness"),
        alias=("乙肝", "HBV"), ages=(18, 60),
    ),
    Condition(
        ("登革热", "dengue fever"), "infection", "days",
        ("蚊子叮咬后高热、眼眶痛、骨头像断了一样痛、皮肤充血红疹、刚从东南亚回来",
         "high fever after mosquito bites, pain behind the eyes, pain like broken bones, flushed skin rash, "
         "a recent trip to Southeast Asia"),
        advice=("防蚊休息，不用阿司匹林", "rest, avoid mosquitoes and take no aspirin"),
        red_flag=("剧烈腹痛或出血", "severe belly pain or bleeding"),
        alias=("断骨热", "breakbone fever"),
    ),
    Condition(
        ("疟疾", "malaria"), "infection", "days",
        ("隔天发冷发热、大汗后退烧、刚从非洲回来、脾脏肿大、发作时打寒颤",
         "chills and fever every other day, heavy sweat ending the fever, a recent trip to Africa, "
         "enlarged spleen, shaking chills"),
        advice=("马上验血，规范抗疟治疗", "have a blood smear at once"),
        red_flag=("昏迷", "coma"),
        alias=("打摆子", "marsh fever"),
    ),
    # dentistry
    Condition(
        ("龋齿", "tooth decay"), "teeth", "weeks",
        ("吃甜食牙疼、牙上有黑洞、遇冷热牙痛、食物塞牙、半夜牙痛",
         "tooth pain with sweets, dark hole in a tooth, tooth pain with cold drinks, food stuck in a tooth, "
         "toothache at night"),
        advice=("少吃糖，尽早补牙", "eat less sugar and have a filling soon"),
        red_flag=("脸肿发热", "swollen face with fever"),
        alias=("蛀牙", "dental caries"), ages=(5, 65),
    ),
    Condition(
        ("牙周炎", "periodontitis"), "teeth", "months",
        ("刷牙出血、牙齿松动、口臭、牙龈萎缩、牙结石多",
         "bleeding when brushing, loose teeth, bad breath, receding gums, heavy tartar"),
        advice=("洗牙，每天用牙线", "have the teeth cleaned and floss daily"),
        red_flag=("牙龈流脓", "pus from the gums"),
        alias=("", "gum disease"), ages=(25, 75),
    ),
    # general surgery
    Condition(
        ("阑尾炎", "appendicitis"), "surgery", "hours",
        ("右下腹痛、疼痛从肚脐转移、松手时腹痛更重、低热、恶心",
         "pain in the lower right belly, pain moving from the navel, belly pain on letting go, "
         "mild fever, nausea"),
        advice=("禁食禁水，马上去医院", "do not eat and go to hospital now"),
        red_flag=("全腹剧痛", "severe pain all over the belly"),
        alias=("盲肠炎", "inflamed appendix"), ages=(10, 60),
    ),
    Condition(
        ("胆囊炎", "cholecystitis"), "surgery", "hours",
        ("吃油腻后腹痛、疼痛传到右肩、右上腹剧痛、呕吐、发热",
         "belly pain after fatty meals, pain spreading to the right shoulder, severe pain under the right ribs, "
         "vomiting, fever"),
        advice=("暂时禁食，就诊做超声", "stop eating and have an ultrasound"),
        red_flag=("皮肤发黄", "yellow skin"),
        alias=("", "gallbladder inflammation"), ages=(30, 75),
    ),
    Condition(
        ("痔疮", "hemorrhoids"), "surgery", "weeks",
        ("便后滴鲜血、肛门有肉球、肛门坠痛、长期久坐、便秘",
         "bright blood after a stool, lump at the anus, dragging pain at the anus, long hours of sitting, "
         "constipation"),
        advice=("多吃蔬菜，温水坐浴", "eat fiber and take warm sitz baths"),
        red_flag=("大量便血", "heavy bleeding"),
        alias=("", "piles"),
    ),
    Condition(
        ("腹股沟疝", "inguinal hernia"), "surgery", "months",
        ("腹股沟鼓包、平躺后包块消失、咳嗽时包块变大、提重物后坠胀、站久了包块突出",
         "bulge in the groin, bulge gone on lying down, bulge growing on coughing, dragging after lifting, "
         "bulge after long standing"),
        advice=("避免提重物，择期手术", "avoid lifting and plan surgery"),
        red_flag=("包块变硬疼痛", "a hard painful bulge"),
        alias=("疝气", "groin hernia"), ages=(30, 80), sex="male",
    ),
    # emergency medicine
    Condition(
        ("心肌梗死", "heart attack"), "emergency", "hours",
        ("胸痛持续不缓解、大汗淋漓、左臂疼痛、濒死感、面色苍白",
         "chest pain that will not stop, heavy sweating, left arm pain, fear of dying, pale face"),
        advice=("立即叫救护车，不要走动", "call an ambulance now and do not walk"),
        red_flag=("失去意识", "loss of consciousness"),
        alias=("心梗", "myocardial infarction"), ages=(40, 85),
    ),
    Condition(
        ("脑卒中", "stroke"), "emergency", "hours",
        ("口角歪斜、一侧手脚无力、说话不清、突然站不稳、一侧看不见",
         "drooping face, weakness on one side, slurred speech, sudden loss of balance, "
         "blindness on one side"),
        advice=("立即叫救护车，记下发病时间", "call an ambulance now and note the time"),
        red_flag=("昏迷", "coma"),
        alias=("中风", "brain attack"), ages=(45, 88),
    ),
    Condition(
        ("过敏性休克", "anaphylaxis"), "emergency", "hours",
        ("打针后突然憋气、喉头肿胀、血压骤降、全身起红疹、手脚冰凉",
         "sudden choking after an injection, swollen throat, drop in blood pressure, sudden rash all over, "
         "cold hands and feet"),
        advice=("立即叫救护车，平卧抬腿", "call an ambulance now and lie flat"),
        red_flag=("呼吸停止", "breathing that stops"),
        alias=("", "allergic shock"), ages=(10, 70),
    ),
    Condition(
        ("中暑", "heat exhaustion"), "emergency", "hours",
        ("烈日下长时间劳动、体温很高、皮肤发烫、头昏、四肢乏力",
         "long work in the sun, very high body temperature, burning hot skin, "
         "light-headedness, weak limbs"),
        advice=("移到阴凉处，降温补水", "move to the shade, cool down and drink"),
        red_flag=("神志不清", "confusion"),
        alias=("发痧", "heat sickness"), ages=(16, 70),
    ),
    Condition(
        ("一氧化碳中毒", "carbon monoxide poisoning"), "emergency", "hours",
        ("屋内烧炭取暖、口唇樱桃红、同屋的人都头痛、门窗紧闭、昏昏沉沉",
         "a charcoal stove indoors, cherry-red lips, headache in the whole household, "
         "closed windows, drowsiness"),
        advice=("开窗离开现场，叫救护车", "go outside and call an ambulance"),
        red_flag=("叫不醒", "being hard to wake"),
        alias=("煤气中毒", "coal gas poisoning"), ages=(16, 80),
    ),
]  # fmt: skip
