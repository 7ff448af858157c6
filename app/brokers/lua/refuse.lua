-- Remember a revocation until its end, and tell every worker.
-- KEYS 1 hash of revocations: name -> end (ms); field "" -> revision
-- ARGV 1 control channel, 2 message to the workers, 3 name, 4 end (ms; since 1970, or from now), 5 "1": from now
-- Ends are only ever moved later. Returns the revision.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local till = tonumber(ARGV[4])
if ARGV[5] == '1' then till = now + till end
local known = tonumber(redis.call('HGET', KEYS[1], ARGV[3]) or 0)
if till <= now or till <= known then return tonumber(redis.call('HGET', KEYS[1], '') or 0) end
redis.call('HSET', KEYS[1], ARGV[3], string.format('%.0f', till))
local revision = redis.call('HINCRBY', KEYS[1], '', 1)
local last = till
local all = redis.call('HGETALL', KEYS[1])
for at = 1, #all, 2 do
  local ends = tonumber(all[at + 1])
  if all[at] ~= '' then
    if ends <= now then redis.call('HDEL', KEYS[1], all[at]) else last = math.max(last, ends) end
  end
end
redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', last + 86400000))
redis.call('PUBLISH', ARGV[1], ARGV[2])
return revision
