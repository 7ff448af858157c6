-- How many connections each address and user has on the other workers.
-- KEYS 1 zset of incarnations   ARGV 1 key prefix of the counts (same hash slot), 2 incarnation, 3 its counts (JSON),
-- 4 their TTL (ms). Returns the counts of the other living workers.
redis.call('SET', ARGV[1] .. ARGV[2], ARGV[3], 'PX', ARGV[4])
local others = {}
for _, incarnation in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  if incarnation ~= ARGV[2] then
    local counts = redis.call('GET', ARGV[1] .. incarnation)
    if counts then others[#others + 1] = counts end
  end
end
return others
