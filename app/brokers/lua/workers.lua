-- The head of beat and bury, behind settle.lua: the clock, and since when this server has reigned.

local DAY = 86400000

local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- When this reign was noted first (ms), at the key "<replid> <ms>"; noted now when it is new.
local function reigning_since(key, server, now)
  local known, since = string.match(redis.call('GET', key) or '', '^(%x+) (%d+)$')
  if known == server then return tonumber(since) end
  redis.call('SET', key, server .. ' ' .. digits(now))
  return now
end

