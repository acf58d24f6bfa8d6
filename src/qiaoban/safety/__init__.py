"""What a child at risk gets: signals → policy → vetted replies on the way in, a sentence-wise guard on the way out.

Nothing here talks to an engine. The rules, the policy, the replies and the help lines are data in `qiaoban.bank`.
"""
