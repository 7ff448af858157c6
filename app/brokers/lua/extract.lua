-- Read a range for someone who is not subscribed: after `since` the first entries, else the newest ones before `before`.
-- KEYS 1 meta, 2 log
-- ARGV 1 Pub/Sub channel, 2 meta ttl ms, 3 epoch of since ('': none), 4 its offset, 5 epoch of before ('': none),
--      6 its offset, 7 entries at most, 8 bytes of envelopes at most, 9 nonce
-- Returns the answer of `sync`; the page descends when `since` is absent. A bound that is refused gives its verdict.

local server, refusal = reign()
if not server then return refusal end
local state = settle(KEYS[1], KEYS[2], server, ARGV[9], ARGV[1])
keep(KEYS[1], KEYS[2], state, ARGV[2])
local count, bytes, last = tonumber(ARGV[7]), tonumber(ARGV[8]), state.top
if ARGV[5] ~= '' then
  local before = tonumber(ARGV[6])
  if not on_history(state, ARGV[5], before) then return answer('diverged', state) end
  last = before - 1
end
if ARGV[3] == '' then return answer('ok', state, pages(KEYS[2], last, 1, -1, count, bytes)) end
local since = tonumber(ARGV[4])
local verdict = judge(KEYS[2], state, ARGV[3], since)
if verdict ~= 'ok' then return answer(verdict, state) end
return answer('ok', state, pages(KEYS[2], since + 1, last, 1, count, bytes))
