-- Remember revocations until their ends, and tell every worker.
-- KEYS 1 zset of revocations: name by end (ms)   KEYS 2 revision
-- ARGV 1 control channel, 2 message to the workers, 3 "1": ends are from now, else since 1970; then name, end (ms), ...
-- Ends are only ever moved later. A revision never comes twice, whatever was lost in between: it is a time.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local changed = false
for at = 4, #ARGV, 2 do
  local till = tonumber(ARGV[at + 1])
  if ARGV[3] == '1' then till = now + till end
  if till > now and till > tonumber(redis.call('ZSCORE', KEYS[1], ARGV[at]) or 0) then
    redis.call('ZADD', KEYS[1], string.format('%.0f', till), ARGV[at])
    changed = true
  end
end
if not changed then return 0 end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
local revision = math.max(tonumber(redis.call('GET', KEYS[2]) or 0) + 1, clock[1] * 1000000 + clock[2])
redis.call('SET', KEYS[2], string.format('%.0f', revision))
local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2]
for _, key in ipairs(KEYS) do redis.call('PEXPIREAT', key, string.format('%.0f', last + 86400000)) end
redis.call('PUBLISH', ARGV[1], ARGV[2])
return 1
