-- The head of publish, sync, tops, extract and clear: which server is this, and under which epoch does a channel stand
-- (docs: continuity, rule "settle"). Settling writes nothing, so that a caller's first write is the one Redis may refuse.
--
-- meta  hash    top      offset of the newest message
--               epoch    of the current reign
--               server   master_replid of that reign
--               lineage  "<epoch>:<first offset>,..." of every reign that the log still reaches, oldest first
--               tail     epoch of the message at the top
--               cleared  epoch that the last clear began, or absent
-- log   stream  id <offset>-0; e epoch, m envelope

local LINEAGE = 64 -- reigns remembered at most
local CHUNK = 64   -- entries fetched at once, so that a page of large ones is not all held

local function digits(number) -- Lua would print 1e14 as 1e+14
  return string.format('%.0f', number)
end

-- The reign of this server, or nil and the error to return.
local function reign()
  local info = redis.call('INFO', 'replication')
  if string.match(info, 'role:(%a+)') ~= 'master' then
    return nil, redis.error_reply('NOTPRIMARY this server is a replica')
  end
  local server = string.match(info, 'master_replid:(%x+)')
  if not server then
    return nil, redis.error_reply('NOREPLID INFO replication hides master_replid')
  end
  return server
end

local function mint(server, nonce, channel)
  local time = redis.call('TIME')
  return string.sub(redis.sha1hex(server .. nonce .. time[1] .. time[2] .. channel), 1, 12)
end

-- Drop the reigns in which no position is covered any more: the next one began before the oldest entry's predecessor.
local function prune(lineage, log, top)
  local oldest = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
  local reached = top
  if oldest then reached = tonumber(string.match(oldest[1], '^%d+')) - 1 end
  local reigns, firsts = {}, {}
  for epoch, first in string.gmatch(lineage, '([^:,]+):(%d+)') do
    reigns[#reigns + 1] = epoch .. ':' .. first
    firsts[#firsts + 1] = tonumber(first)
  end
  local keep = math.max(1, #reigns - LINEAGE + 1)
  while keep < #reigns and firsts[keep + 1] <= reached do keep = keep + 1 end
  return table.concat(reigns, ',', keep)
end

-- The channel's state under this server's reign; `fresh` when it differs from what is stored, `lost` without a meta.
local function settle(meta, log, server, nonce, channel)
  local stored = redis.call('HMGET', meta, 'top', 'epoch', 'server', 'lineage', 'tail', 'cleared')
  local state = {server = server, lost = not (stored[1] and stored[2] and stored[4] and stored[5])}
  if not state.lost then
    state.top, state.epoch, state.lineage = tonumber(stored[1]), stored[2], stored[4]
    state.tail, state.cleared = stored[5], stored[6] or ''
    if stored[3] == server then return state end
  end
  state.fresh = true
  state.epoch = mint(server, nonce, channel)
  if state.lost then
    state.top, state.tail, state.cleared, state.lineage = 0, state.epoch, '', state.epoch .. ':1'
  else
    local longer = state.lineage .. ',' .. state.epoch .. ':' .. digits(state.top + 1)
    state.lineage = prune(longer, log, state.top)
  end
  return state
end

local function store(meta, state)
  redis.call('HSET', meta, 'top', digits(state.top), 'epoch', state.epoch, 'server', state.server,
    'lineage', state.lineage, 'tail', state.tail, 'cleared', state.cleared)
end

-- Without its meta a log is an orphan: its ids would refuse low offsets. EXISTS first, since a DEL that is the first
-- write would switch off the check for memory.
local function orphan(log)
  if redis.call('EXISTS', log) == 1 then redis.call('DEL', log) end
end

-- Keep what a read has settled, and the meta alive (milliseconds).
local function keep(meta, log, state, ttl)
  if state.fresh then
    if state.lost then orphan(log) end
    store(meta, state)
  end
  if state.fresh or redis.call('PTTL', meta) < tonumber(ttl) / 2 then redis.call('PEXPIRE', meta, ttl) end
end

local function on_history(state, epoch, offset)
  local found = false
  for name, first in string.gmatch(state.lineage, '([^:,]+):(%d+)') do
    if found then return offset < tonumber(first) end
    found = name == epoch
  end
  return found and offset <= state.top
end

local function judge(log, state, epoch, offset)
  if not on_history(state, epoch, offset) then return 'diverged' end
  if offset == state.top then return 'ok' end
  local after = digits(offset + 1) .. '-0'
  local entry = redis.call('XRANGE', log, after, '+', 'COUNT', 1)[1]
  if entry and entry[1] == after then return 'ok' end
  return 'expired'
end

-- Consecutive entries from offset `at` towards `stop` (both included; downwards if step is -1), flat:
-- "<epoch>-<offset>", envelope, ... At most `count`, at most `bytes` of envelopes, but one at least. Ends at a hole.
local function pages(log, at, stop, step, count, bytes)
  local page, size = {}, 0
  while count > 0 and (stop - at) * step >= 0 do
    local command = step > 0 and 'XRANGE' or 'XREVRANGE'
    local entries = redis.call(command, log, digits(at) .. '-0', digits(stop) .. '-0', 'COUNT', math.min(CHUNK, count))
    if #entries == 0 then return page end
    for _, entry in ipairs(entries) do
      local fields = entry[2]
      if entry[1] ~= digits(at) .. '-0' or fields[1] ~= 'e' or fields[3] ~= 'm' then return page end
      size = size + #fields[4]
      if size > bytes and #page > 0 then return page end
      page[#page + 1] = fields[2] .. '-' .. digits(at)
      page[#page + 1] = fields[4]
      at, count = at + step, count - 1
    end
  end
  return page
end

local function answer(verdict, state, page)
  return {verdict, state.epoch, digits(state.top), state.tail, state.lineage, state.cleared, page or {}}
end

