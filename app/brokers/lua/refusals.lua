-- The revocations, if they have changed.
-- KEYS 1 hash of revocations: name -> end (ms); field "" -> revision   ARGV 1 revision that the caller knows (-1: none)
-- Returns nil where the caller is up to date, else {revision, now (ms), {name, end, ...}}
local server, refusal = reign()
if not server then return refusal end
local revision = tonumber(redis.call('HGET', KEYS[1], '') or 0)
if revision == tonumber(ARGV[1]) then return false end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local found = {}
local all = redis.call('HGETALL', KEYS[1])
for at = 1, #all, 2 do
  if all[at] ~= '' and tonumber(all[at + 1]) > now then
    found[#found + 1] = all[at]
    found[#found + 1] = all[at + 1]
  end
end
return {revision, string.format('%.0f', now), found}
